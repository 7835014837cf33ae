"""Choose the driver of the TEE that this process runs in."""

import os
import socket

from attestation.errors import AttestationError

from .driver import TeeDriver
from .simulated_client import SimulatedDriver


def open_driver() -> TeeDriver:
    """Open the TEE that this process runs in: the software CPU's socket, or Gramine's /dev/attestation.

    Raises TEE_MISSING outside a TEE. The simulated TEE is used only if its CPU set the environment variable; the caller
    decides by `kind` whether to accept it.
    """
    if os.environ.get("DC_TEE") == "simulated":
        text = os.environ.get("DC_TEE_FD", "")
        try:
            fd = int(text)
            os.set_inheritable(fd, False)
            return SimulatedDriver(socket.socket(fileno=fd))
        except (ValueError, OSError) as error:
            raise AttestationError(
                code="TEE_MISSING",
                what="the software CPU cannot be reached",
                why=f"DC_TEE_FD={text!r} is not an open socket",
                action="Start the enclave with python -m attestation.simulated run.",
            ) from error
    if os.path.exists("/dev/attestation/report"):
        from .gramine import GramineDriver

        return GramineDriver()
    raise AttestationError(
        code="TEE_MISSING",
        what="this process runs in no TEE",
        why="there is neither DC_TEE=simulated nor /dev/attestation",
        action="Start it in Gramine, or with python -m attestation.simulated run for development.",
    )
