"""The compose file's content, and the small programs that its containers run."""

import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml

from devnet.docker import engine
from devnet.docker.healthy import main as healthy
from devnet.docker.setup import PORTS, ports_of
from devnet.docker.trial import COMPOSE_FILE
from devnet.release_builder import ROOT, ReleaseKeys

SERVICES = yaml.safe_load(COMPOSE_FILE.read_text())["services"]
DOCKERFILE = (ROOT / "devnet" / "docker" / "Dockerfile").read_text()


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_every_service_is_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["user"].startswith("${DC_UID")
    assert "privileged" not in service


@pytest.mark.parametrize("name", ["chain", "artefacts", "vault", "upgrader"])
def test_services_that_stay_have_a_health_check(name: str) -> None:
    assert SERVICES[name]["healthcheck"]["test"][:4] == ["CMD", "python3", "-m", "devnet.docker.healthy"]


def test_only_the_agent_and_its_command_get_the_engines_socket() -> None:
    holders = [name for name, service in SERVICES.items() if "docker.sock" in str(service.get("volumes"))]
    assert holders == ["adopt", "upgrader"]


def test_images_take_their_base_as_an_argument_and_run_as_nobody_special() -> None:
    assert re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)[0] == "${BASE_IMAGE}"
    assert set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)) == {"${BASE_IMAGE}", "build", "runtime"}
    assert "USER 10001:10001" in DOCKERFILE
    targets = set(re.findall(r"^FROM \S+ AS (\S+)", DOCKERFILE, re.MULTILINE))
    assert {item["build"]["target"] for item in SERVICES.values() if "build" in item} <= targets


def test_images_are_built_from_what_the_context_lets_through() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {name for line in re.findall(r"^COPY (?!--)(.+)$", DOCKERFILE, re.MULTILINE) for name in line.split()[:-1]}
    assert copied
    assert [name for name in copied if not {name, name.split("/")[0]} & allowed] == []
    assert all((ROOT / name).exists() for name in copied)


def test_files_of_the_checkout_are_made_readable_before_an_image_that_runs_as_anybody_takes_them() -> None:
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]
    for stage in stages:
        if re.search(r"^COPY (?!--).*/opt/dcupgrade", stage, re.MULTILINE):
            assert "chmod -R a+rX /opt/dcupgrade" in stage
        if stage.startswith("runtime AS"):
            assert not re.search(r"^COPY (?!--from=)", stage, re.MULTILINE)


def test_ports_come_from_the_environment() -> None:
    environment = {f"DC_{name.upper()}_PORT": str(number) for number, name in enumerate(PORTS, 1)}
    assert ports_of(environment) == {name: number for number, name in enumerate(PORTS, 1)}
    with pytest.raises(KeyError):
        ports_of({})


class _Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/healthz" else 404)
        self.end_headers()

    def do_POST(self) -> None:
        self.send_response(500)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_health_checks() -> None:
    with HTTPServer(("127.0.0.1", 0), _Answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        port = server.server_address[1]
        found = [healthy(kind, port) for kind in ("tcp", "http", "rpc")]
        server.shutdown()
        thread.join()
    assert found == [0, 0, 1]
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        assert [healthy(kind, port) for kind in ("tcp", "http", "rpc")] == [1, 1, 1]


def test_release_keys_are_found_again(tmp_path: Path) -> None:
    drawn = ReleaseKeys.draw(tmp_path)
    assert ReleaseKeys.load(tmp_path).network_public == drawn.network_public
    (tmp_path / "vendor.pem").write_bytes((tmp_path / "network.pem").read_bytes())
    with pytest.raises(ValueError, match="other kinds"):
        ReleaseKeys.load(tmp_path)


def test_another_base_is_another_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, images = tmp_path / "ca.crt", dict[str, str]()

    def docker(_: object, command: str, *arguments: str, **__: str) -> str:
        if command == "import":
            images[arguments[-1]] = bundle.read_text()
        elif command == "tag":
            images[arguments[1]] = images[arguments[0]]
        return images.get(arguments[-1], "")

    monkeypatch.setattr(engine, "CA_BUNDLE", bundle)
    monkeypatch.setattr(engine, "base_archive", lambda: tmp_path / "base.tar")
    monkeypatch.setattr(engine.PrivateEngine, "docker", docker)
    for trusted in ("then", "now", "then"):
        bundle.write_text(trusted)
        assert images[engine.PrivateEngine().import_base()] == trusted
    assert len(images) == 3
