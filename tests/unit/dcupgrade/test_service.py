"""What the agent prepares before it begins to work."""

import asyncio
import threading
from pathlib import Path

import pytest

from dcupgrade import service
from dcupgrade.errors import DcupgradeError
from dcupgrade.settings import load
from tests.doubles.command_line import KEY

SILENT = 40
"""More than asyncio's own pool ever has."""


def test_name_servers_that_are_silent_hold_up_no_other_blocking_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    config = tmp_path / "dcupgrade.toml"
    config.write_text(
        f'[agent]\nstate_dir = "{tmp_path}/file/state"\n'
        f'[chain]\nendpoints = ["ws://127.0.0.1:9"]\nnetwork_keys = ["{KEY}"]\nfinality = "single"\n'
        f'[node]\nid = "n1"\ndata_dir = "{tmp_path}/data"\n[vault]\nstart = false\n'
    )
    answered = threading.Event()

    async def act() -> None:
        with pytest.raises(DcupgradeError, match="AGENT_STATE_UNUSABLE"):
            await service.serve(load.load(config))
        lookups = [asyncio.get_running_loop().run_in_executor(None, answered.wait) for _ in range(SILENT)]
        try:
            async with asyncio.timeout(5):
                assert await asyncio.to_thread(lambda: "a node is started") == "a node is started"
        finally:
            answered.set()
        await asyncio.gather(*lookups)

    asyncio.run(act())
