"""Shared by the tests of staging: a stand-in for the measurement, requests, and a failing measurement."""

from pathlib import Path

import pytest

from process_supervisor.errors import ProcessSupervisorError
from process_supervisor.limits import DownloadLimits
from process_supervisor.stage import StageRequest, stage
from tests.doubles.release_archives import ENCLAVE

# Above what the client's socket buffers hold (aiohttp drops those when a connection breaks), so that a part remains.
BIG = b"image" * 200_000
CUT = 700_000
OTHER = "cd" * 32
SIGNATURE = {"network.sig": b"bsignature"}


class OtherPackageError(Exception):
    """Stands for an error of the measurement."""

    code = "SIGSTRUCT_MRENCLAVE_MISMATCH"
    kind = "rejected"


def measure(folder: Path) -> str:
    """Stands for the measurement: an image that begins with `image` measures as ENCLAVE, others differ."""
    image = (folder / "enclave.pyz").read_bytes()
    if image.startswith(b"bad"):
        raise OtherPackageError("the SIGSTRUCT names another MRENCLAVE")
    return ENCLAVE if image.startswith(b"image") else "cd" * 32


def request(*sources: str, cids: tuple[str, ...] = ()) -> StageRequest:
    return StageRequest(enclave_id=ENCLAVE, sources=sources, cids=cids, extra_files=SIGNATURE)


def part_of(slots: Path) -> Path:
    """Return the only part file."""
    (part,) = (slots / ".incoming").glob(f"{ENCLAVE}.*.part")
    return part


async def failure(req: StageRequest, slots: Path, limits: DownloadLimits) -> ProcessSupervisorError:
    with pytest.raises(ProcessSupervisorError) as caught:
        await stage(req, slots, measure, limits)
    assert not (slots / ENCLAVE).exists()
    return caught.value
