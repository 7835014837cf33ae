"""Archives of small releases, for tests of downloads and staging."""

import gzip
import hashlib
import io
import tarfile

ENCLAVE = "ab" * 32


def member(
    name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = ""
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(data), kind, link
    return info, data


def tar_bytes(*members: tuple[tarfile.TarInfo, bytes], compress: bool = True, fmt: int = tarfile.USTAR_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=fmt) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return gzip.compress(buffer.getvalue(), mtime=0) if compress else buffer.getvalue()


def release_tar(image: bytes = b"image" * 4000, name: str = "node") -> bytes:
    text = f'{{"name":"{name}","version":"1.0.0","enclave_id":"{ENCLAVE}"}}'.encode()
    return tar_bytes(
        member("release.json", text), member("enclave.pyz", image), member("enclave.sig", b"s" * 1808), compress=False
    )


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
