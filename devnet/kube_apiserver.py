"""A real kube-apiserver with its own etcd, for trials: RBAC, service accounts, TLS, loopback only.

There is no kubelet and no controller: objects are validated and stored, but no pod runs.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import secrets
import ssl
import subprocess
import urllib.error
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from .etcd import EtcdServer
from .kube_tools import ensure_kube_tools
from .tools import DevnetError, free_port, wait_ready

START_TIMEOUT_S = 180.0
ADMIN, ADMIN_GROUP = "admin", "system:masters"
SERVICE_IPS = "10.96.0.0/24"


class KubeApiServer:
    """`with KubeApiServer(folder) as api: … api.url …`; `kill` and `start` in between keep the objects.

    `users` have only the rights that roles give them. There is always an administrator as well.
    """

    def __init__(self, folder: Path, users: tuple[str, ...] = ()) -> None:
        self._folder = folder
        self._etcd = EtcdServer(folder / "etcd")
        self.port = free_port()
        self._tokens = {user: secrets.token_hex(16) for user in (ADMIN, *users)}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The URL for clients."""
        return f"https://127.0.0.1:{self.port}"

    @property
    def ca_file(self) -> Path:
        """The CA certificate that clients must trust."""
        return self._folder / "tls.crt"

    def token(self, user: str) -> str:
        """A user's bearer token."""
        return self._tokens[user]

    def account_token(self, namespace: str, account: str) -> str:
        """Ask for a token of a service account, as the kubelet does for a projected volume."""
        return self.kubectl("-n", namespace, "create", "token", account).strip()

    def kubectl(self, *arguments: str, stdin: str = "", token: str = "") -> str:
        """Run kubectl with a token, or as the administrator. Raises DevnetError with its output."""
        server = ("--server", self.url, "--certificate-authority", str(self.ca_file))
        return self._run("kubectl", (*server, "--token", token or self._tokens[ADMIN], *arguments), stdin)

    def helm(self, *arguments: str) -> str:
        """Run helm as the administrator; returns its output. Raises DevnetError with its output."""
        server = ("--kube-apiserver", self.url, "--kube-ca-file", str(self.ca_file))
        return self._run("helm", (*server, "--kube-token", self._tokens[ADMIN], *arguments))

    def _run(self, tool: str, arguments: tuple[str, ...], stdin: str = "") -> str:
        # without the user's own kubeconfig, plugins and caches of other clusters
        env = {"HOME": str(self._folder), "PATH": os.environ.get("PATH", ""), "KUBECONFIG": os.devnull}
        argv = [str(ensure_kube_tools() / tool), *arguments]
        done = subprocess.run(argv, input=stdin, env=env, capture_output=True, text=True, check=False, timeout=120)
        if done.returncode != 0:
            raise DevnetError(f"{tool} (exit code {done.returncode}): {(done.stderr or done.stdout).strip()[-3000:]}")
        return done.stdout

    def start(self) -> None:
        """Start it and wait until it is ready. Raises DevnetError."""
        files = {"tls": self.ca_file, "key": self._folder / "tls.key", "sign": self._folder / "accounts.key"}
        argv = [
            *(str(ensure_kube_tools() / "kube-apiserver"), "--etcd-servers", self._etcd.url),
            *("--bind-address", "127.0.0.1", "--secure-port", str(self.port), "--endpoint-reconciler-type", "none"),
            *("--tls-cert-file", str(files["tls"]), "--tls-private-key-file", str(files["key"])),
            *("--token-auth-file", str(self._folder / "users.csv"), "--authorization-mode", "RBAC"),
            *("--service-account-key-file", str(files["sign"]), "--service-account-issuer", self.url),
            *("--service-account-signing-key-file", str(files["sign"]), "--service-cluster-ip-range", SERVICE_IPS),
            *("--cert-dir", str(self._folder), "--anonymous-auth=false", "--profiling=false"),
        ]
        log_path = self._folder / "apiserver.log"
        with open(log_path, "ab") as log:
            self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_ready(self._process, self._ready, "kube-apiserver", log_path, START_TIMEOUT_S)

    def _ready(self) -> bool:
        headers = {"Authorization": f"Bearer {self._tokens[ADMIN]}"}
        request = urllib.request.Request(f"{self.url}/readyz", headers=headers)  # noqa: S310 - our own loopback address
        context = ssl.create_default_context(cafile=str(self.ca_file))
        with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=5, context=context) as answer:  # noqa: S310
            return bool(answer.status == 200)
        return False

    def kill(self) -> None:
        """Kill it, as a power cut would; etcd keeps running."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._write_credentials()
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._etcd)
            stack.callback(self.kill)
            self.start()
            self._ending = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.close()

    def _write_credentials(self) -> None:
        rows = []
        for number, (user, token) in enumerate(self._tokens.items()):
            rows.append(f"{token},{user},{number}" + (f',"{ADMIN_GROUP}"' if user == ADMIN else ""))
        self._write("users.csv", "\n".join(rows).encode() + b"\n")
        self._write("accounts.key", _pem(ec.generate_private_key(ec.SECP256R1())))
        key = ec.generate_private_key(ec.SECP256R1())
        self._write("tls.key", _pem(key))
        self.ca_file.write_bytes(_self_signed(key))

    def _write(self, name: str, data: bytes) -> None:
        path = self._folder / name
        path.touch(mode=0o600)
        path.write_bytes(data)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    form = serialization.PrivateFormat.TraditionalOpenSSL  # the API server does not read PKCS 8 for accounts
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def _self_signed(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Make a self-signed certificate for loopback, valid for a day."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "dcupgrade devnet")])
    now = datetime.now(UTC)
    here = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    usage = {use: use in ("digital_signature", "key_cert_sign") for use in KEY_USES}
    public = key.public_key()
    builder = (
        x509.CertificateBuilder(name, name, public, x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(here, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**usage), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


KEY_USES = (
    *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
    *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
)
