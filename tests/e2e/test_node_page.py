"""docs/node-in-100-lines.md, followed word by word, with what the wheel of this tree installs.

Only the ports are others, since those of the page may be taken; what the wheel needs is there already.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from devnet.chain import DevChain
from devnet.tools import free_port
from tests.conftest import ROOT
from tests.doubles.built_wheel import build_wheel, install_wheel
from tests.doubles.doc_pages import commands_of

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

PAGE = "docs/node-in-100-lines.md"


def program() -> str:
    [found] = re.findall(r"^```python\n(.*?)^```$", (ROOT / PAGE).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return str(found)


def commands() -> str:
    return "\n".join(block.text for block in commands_of(PAGE) if block.run_by)


def processes_of(folder: Path) -> list[int]:
    """Pids of what was started from the folder: its command line names it, or it works there, as the agent does."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            works_in = os.readlink(path / "cwd")
            if f"{folder}/".encode() in (path / "cmdline").read_bytes() or works_in.startswith(f"{folder}/"):
                found.append(int(path.name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """An empty folder beside an installation of the wheel; what was started from it is ended."""
    install_wheel(build_wheel(tmp_path / "build"), tmp_path / "venv")
    (tmp_path / "work" / "mynode").mkdir(parents=True)
    yield tmp_path / "work"
    for number, patience_s in ((signal.SIGTERM, 15.0), (signal.SIGKILL, 10.0)):
        for pid in processes_of(tmp_path):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + patience_s
        while processes_of(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.05)
    assert processes_of(tmp_path) == []


def test_the_node_has_about_a_hundred_lines_of_its_own() -> None:
    lines = [line for line in program().splitlines() if line.strip() and not line.startswith(("import", "from"))]
    assert len(lines) <= 115


async def test_the_page_leads_to_a_node_of_ones_own_under_upgrade(shared_chain: DevChain, folder: Path) -> None:
    (folder / "mynode" / "__init__.py").touch()
    (folder / "mynode" / "main.py").write_text(program())
    script = commands()
    for port in ("6666", "6667", "6680", "8000"):
        script = re.sub(rf"\b{port}\b", str(free_port()), script)
    environ = {**os.environ, "PATH": f"{folder.parent}/venv/bin:{os.environ['PATH']}", "CHAIN": shared_chain.ws_url}
    environ.pop("PYTHONPATH", None)
    with (folder / "output").open("wb") as output:
        shell = await asyncio.create_subprocess_exec(
            *("bash", "-eu", "-o", "pipefail", "-c", script),
            cwd=folder,
            env=environ,
            stdout=output,
            stderr=output,
            stdin=asyncio.subprocess.DEVNULL,
        )
        try:
            code = await asyncio.wait_for(shell.wait(), 240)
        except TimeoutError:
            shell.kill()
            code = -1
    text = (folder / "output").read_text()
    log = folder / "agent.log"
    assert code == 0, f"{text}\n{log.read_text()[-4000:] if log.exists() else ''}"
    assert "hello from 1.0.0" in text
    assert re.search(r"1\.1\.0 +committed", text)
