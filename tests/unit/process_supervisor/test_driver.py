"""Records of nodes and their exit statuses, which every driver shares."""

import json

import pytest

from process_supervisor.driver import ExitStatus, NodeRecord
from process_supervisor.errors import ProcessSupervisorError


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "null", '{"kind": "process"}', "[" * 100_000, "x" * 70_000],
)
def test_malformed_records_are_refused(text: str) -> None:
    with pytest.raises(ProcessSupervisorError) as caught:
        NodeRecord.from_json(text)
    assert (caught.value.code, caught.value.kind) == ("NODE_RECORD_INVALID", "invariant")


def test_records_survive_json() -> None:
    record = NodeRecord(kind="process", name="n", started_unix_s=1.5, command_digest="d", pid=1, boot_id="b")
    assert NodeRecord.from_json(record.to_json()) == record
    for name, value in (("pid", "1"), ("pid", True), ("kind", "thread"), ("pid", -1), ("started_unix_s", "x")):
        with pytest.raises(ProcessSupervisorError):
            NodeRecord.from_json(json.dumps({**json.loads(record.to_json()), name: value}))


def test_statuses_read_well() -> None:
    texts = [str(ExitStatus(code=1)), str(ExitStatus(signal=9))]
    assert texts == ["ended with exit code 1", "ended by signal 9"]
    assert "not known" in str(ExitStatus())
