"""The commands of a documentation page, run section by section, unchanged."""

from __future__ import annotations

import asyncio
import re
import stat
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT

BLOCK = re.compile(r"(<!-- not run: [^>]+-->\n)?```sh\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def sections(text: str) -> dict[str, list[tuple[str, bool]]]:
    """For each heading its commands, continued lines joined, and whether they are to be run."""
    found: dict[str, list[tuple[str, bool]]] = {}
    for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        heading, _, body = part.partition("\n")
        found[heading] = [
            (line.strip(), not skipped)
            for skipped, block in BLOCK.findall(body)
            for line in block.replace("\\\n", " ").splitlines()
            if line.strip()
        ]
    return found


@dataclass
class FollowedPage:
    """Runs a page's commands: `programs` stand first in the PATH, `paths` are those of the test's own host.

    What no shell of a test can do, such as `systemctl`, is done by `services`, by the words after the program's name.
    """

    text: str
    folder: Path
    programs: Mapping[str, str]
    paths: Mapping[str, str]
    services: Mapping[str, Callable[[], Awaitable[None]]]
    environ: Mapping[str, str]

    def __post_init__(self) -> None:
        bin_folder = self.folder / "bin"
        bin_folder.mkdir(parents=True)
        for name, command in self.programs.items():
            path = bin_folder / name
            path.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
            path.chmod(stat.S_IRWXU)

    async def follow(self, number: int) -> str:
        """Run the commands of the section with that number; gives what they wrote. Fails at the first that fails."""
        (commands,) = (found for heading, found in sections(self.text).items() if heading.startswith(f"{number}. "))
        wrote = ""
        for command, is_run in commands:
            if not is_run:
                continue
            if command.startswith("systemctl "):
                await self.services[command.removeprefix("systemctl ")]()
            else:
                wrote += await self._run(command)
        return wrote

    async def _run(self, command: str) -> str:
        for named, here in self.paths.items():
            command = command.replace(named, here)
        process = await asyncio.create_subprocess_exec(
            *("bash", "-euo", "pipefail", "-c", command),
            cwd=ROOT,
            env={**self.environ, "PATH": f"{self.folder / 'bin'}:{self.environ['PATH']}"},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        assert process.returncode == 0, f"{command}\n{output.decode()}"
        return output.decode()


DCUPGRADE = f"{sys.executable} -m dcupgrade"
