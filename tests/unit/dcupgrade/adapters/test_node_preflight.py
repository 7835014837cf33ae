"""The checks of the host before an upgrade."""

import os
from pathlib import Path
from typing import Any, cast

import pytest

from dcupgrade.adapters.node_preflight import Preflight
from dcupgrade.upgrade.ports import NodeHealth
from process_supervisor.data_lock import DataLock
from tests.doubles.node_driver import NEW, OLD, Driver, settings_of


class GoodSlots:
    async def slot_is_good(self, _: str) -> bool:
        return True


class Serving:
    async def health(self, enclave_id: str) -> NodeHealth:
        return NodeHealth("serving", enclave_id)


@pytest.mark.parametrize("running", [True, False])
@pytest.mark.parametrize("whose", ["the node's", "a stranger's", "nobody's"])
async def test_data_that_a_stranger_holds_keeps_the_gates_shut(data_dir: Path, running: bool, whose: str) -> None:
    driver = Driver()
    node = driver.run(OLD, pid=os.getsid(0) if whose == "the node's" else 1)
    node.ended = not running
    checks = Preflight(
        settings_of(data_dir),
        cast(Any, driver),
        cast(Any, GoodSlots()),
        cast(Any, Serving()),
        first_install_allowed=False,
        sealed_copies=lambda: None,
    )
    held = DataLock(data_dir, "somebody")
    if whose != "nobody's":
        held.acquire()
    try:
        codes = [item.code for item in await checks.preflight(NEW, OLD.enclave_id, False)]
    finally:
        held.release()
    strange = whose == "a stranger's" or (whose == "the node's" and not running)
    assert codes == (["DATA_LOCKED"] if strange else [])
