import json
import struct
import time
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
from aiohttp import web

from attestation.artefact.sigstruct import sign_sigstruct
from attestation.sgx import AEXNOTIFY, MODE64BIT, Attributes
from dcupgrade.adapters.journal import Journal
from dcupgrade.commands import check as doctor
from dcupgrade.machine.events import Adopted
from dcupgrade.machine.state import Release, State
from dcupgrade.settings import load
from dcupgrade.settings import schema as settings
from dcupgrade.upgrade.ports import Entry
from process_supervisor.errors import ProcessSupervisorError
from tests.conftest import ROOT
from tests.doubles.command_line import run
from tests.doubles.signed_enclaves import Key


def made(tmp_path: Path, **sections: object) -> settings.Settings:
    raw = {
        "agent": {"state_dir": str(tmp_path / "state")},
        "chain": {"endpoints": ["ws://127.0.0.1:9"], "network_keys": ["11" * 32], "finality": "single"},
        "node": {"id": "n1", "data_dir": str(tmp_path / "data"), "port": 9},
        "vault": {"command": ["vault"], "url": "http://127.0.0.1:10"},
        "upgrade": {"free_space_min_bytes": 1},  # not what this machine's disk happens to have
    }
    return load.structure({**raw, **sections}, environ={})


def grades(findings: list[doctor.Finding], check: str) -> set[tuple[str, str]]:
    return {(finding.grade, finding.code) for finding in findings if finding.check.startswith(check)}


async def test_a_bare_host_gives_warnings_and_one_fault_for_the_dead_endpoint(tmp_path: Path) -> None:
    findings = await doctor.examine(made(tmp_path))
    assert grades(findings, "chain") == {("fault", "RPC_CONNECT_FAILED")}
    assert grades(findings, "state folder") == {("warning", "")}
    assert grades(findings, "vault") == {("warning", "")}
    assert grades(findings, "node") == {("warning", "")}
    assert [finding for finding in findings if finding.grade == "fault"] == [
        finding for finding in findings if finding.check.startswith("chain")
    ]


async def test_a_vaults_service_without_its_token_here_is_a_fault(tmp_path: Path) -> None:
    token = tmp_path / "vault.token"
    settings = made(tmp_path, vault={"start": False, "url": "http://127.0.0.1:10", "token_file": str(token)})
    [finding] = await doctor._vault(settings)
    assert (finding.grade, finding.code) == ("fault", "AGENT_STATE_UNUSABLE")
    assert str(token) in finding.text


async def test_a_vault_that_is_signed_with_something_that_changes_its_seal_key_is_a_fault(tmp_path: Path) -> None:
    signed = sign_sigstruct(Key(), bytes(32), date=0x20261123)
    for sigstruct, expected in (
        (signed, ("good", "")),
        (replace(signed, miscselect=1), ("fault", "SIGSTRUCT_NOT_PINNED")),
        (replace(signed, attributes=Attributes(MODE64BIT | AEXNOTIFY, 3)), ("fault", "SIGSTRUCT_NOT_PINNED")),
    ):
        file = tmp_path / "vault.sig"
        file.write_bytes(sigstruct.encode())
        vault = {"command": ["vault"], "url": "http://127.0.0.1:10", "sigstruct": str(file)}
        assert grades(await doctor.examine(made(tmp_path, vault=vault)), "vault signature") == {expected}


async def test_what_this_user_may_not_see_is_told_as_such() -> None:
    found = doctor.failed("vault", PermissionError(13, "Permission denied", "/x"))
    assert (found.code, "agent's user" in found.text) == ("AGENT_STATE_UNUSABLE", True)
    assert doctor.failed("vault", ValueError("odd")).code == "UNEXPECTED"


async def test_a_state_folder_open_to_others_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir(mode=0o755)
    (tmp_path / "state").chmod(0o755)
    findings = await doctor.examine(made(tmp_path))
    assert grades(findings, "state folder") == {("fault", "FOLDER_OPEN_TO_OTHERS")}


async def test_too_little_space_is_a_fault(tmp_path: Path) -> None:
    findings = await doctor.examine(made(tmp_path, upgrade={"free_space_min_bytes": 2**60}))
    assert grades(findings, "disk") == {("fault", "DISK_SPACE_LOW")}


@pytest.mark.parametrize(
    ("age_s", "grade", "code"),
    [(5, "good", ""), (3600, "warning", "FINALITY_LAGS"), (-3600, "warning", "CLOCK_SKEWED")],
)
def test_the_age_of_finality_is_told_by_the_chains_own_time(age_s: float, grade: str, code: str) -> None:
    stamp = "0x" + struct.pack("<Q", int((time.time() - age_s) * 1000)).hex()
    [finding] = doctor._clock("chain", stamp)
    assert (finding.grade, finding.code) == (grade, code)


def test_the_findings_of_check_follow_their_schema(config: Path) -> None:
    code, text = run(config, "check", "--json")
    assert code == 1  # the endpoint does not answer
    jsonschema.validate(json.loads(text), json.loads((ROOT / "docs" / "schemas" / "check.schema.json").read_text()))


@pytest.mark.parametrize(
    ("listen", "grade"),
    [
        *((listen, "good") for listen in ("127.0.0.1:6680", "localhost:6680", "[::1]:6680", "off")),
        *((listen, "warning") for listen in ("0.0.0.0:6680", "[::]:6680", "10.0.0.7:6680", "h.example:6680")),
    ],
)
def test_a_page_that_others_can_reach_is_a_warning(tmp_path: Path, listen: str, grade: str) -> None:
    [finding] = doctor._page(made(tmp_path, agent={"state_dir": str(tmp_path / "state"), "http_listen": listen}))
    assert (finding.grade, finding.code) == (grade, "" if grade == "good" else "HTTP_OPEN_TO_OTHERS")


async def test_a_node_that_should_run_and_does_not_answer_is_a_fault(tmp_path: Path) -> None:
    settings = made(tmp_path)
    settings.agent.state_dir.mkdir(mode=0o700)
    journal = Journal(settings.agent.state_dir / "journal.sqlite3")
    running = State(running=Release("a" * 64, "1.0.0"))
    journal.append(Entry(State(), Adopted("", at_unix_s=9.0), running, ()))
    assert grades(await doctor.examine(settings), "node") == {("fault", "NODE_NOT_READY")}


async def test_an_engine_that_is_away_is_told_by_its_code(tmp_path: Path) -> None:
    settings = made(tmp_path, container={"engine": f"unix://{tmp_path}/none.sock"})
    with pytest.raises(ProcessSupervisorError) as caught:
        await doctor._engine(settings)
    assert doctor.failed("engine", caught.value).code == "CONTAINER_ENGINE_UNREACHABLE"


async def test_what_the_host_lacks_for_the_nodes_container_is_a_fault(tmp_path: Path) -> None:
    """Found early, and not only when the next version needs it."""

    async def answer(request: web.Request) -> web.Response:
        what = request.path.rpartition("/")[2]
        manager = {"Id": "1", "Names": ["/dcmanager"], "Image": "dcnetio/dcmanager", "Labels": {}}
        about = {"version": {"Version": "20.10", "ApiVersion": "1.41"}, "json": [manager], "volumes": {}}
        return web.json_response(about[what]) if what in about else web.json_response({"message": "none"}, status=404)

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        settings = made(
            tmp_path,
            node={"id": "n1", "data_dir": str(tmp_path / "data"), "port": 9, "driver": "container", "command": []},
            container={
                "engine": f"tcp://127.0.0.1:{runner.addresses[0][1]}",
                "devices": ["/dev/nowhere"],
                "mounts": [f"{tmp_path}/none:/data", "volume:/x"],
            },
        )
        findings = await doctor._engine(settings)
    finally:
        await runner.cleanup()
    assert [(item.grade, item.code) for item in findings] == [
        ("good", ""),
        ("fault", "OTHER_MANAGER_RUNNING"),
        ("fault", "CONTAINER_DEVICE_MISSING"),
        ("fault", "CONTAINER_MOUNT_MISSING"),
    ], "a volume is made by the first container"
