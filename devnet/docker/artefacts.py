"""The artefact server as a separate service: `python -m devnet.docker.artefacts FOLDER PORT`."""

import asyncio
import signal
import sys
from pathlib import Path

from devnet.artefact_server import ArtefactServer


async def main(folder: Path, port: int) -> None:
    """Serve a folder's archives on loopback until SIGTERM or SIGINT."""
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    server = ArtefactServer(folder, port=port)
    await server.start()
    try:
        await ended.wait()
    finally:
        await server.stop()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
