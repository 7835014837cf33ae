"""The release manager's tools on a real chain, from the command line."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from scalecodec import ScaleBytes
from substrateinterface import SubstrateInterface

from dcupgrade.commands.release import release
from dcupgrade.errors import DcupgradeError
from dcupgrade.publishing import pallet, signing
from devnet.chain import DevChain

CID = "bafybeifkndcs2kxv26zhmsrfb65w4z3jbkucauw4x3bobgaanr56obozha"
pytestmark = [pytest.mark.e2e, pytest.mark.slow]


class Manager:
    """A release manager with a network key and a chain."""

    def __init__(self, chain: DevChain, folder: Path) -> None:
        self.url = chain.ws_url
        self.network = Ed25519PrivateKey.generate()
        self.key_file = folder / "network.key"
        self.key_file.write_text(self.network.private_bytes_raw().hex())

    def run(self, command: str, *arguments: str, suri: str = "//Alice") -> dict[str, object]:
        result = CliRunner().invoke(
            release, [command, "--url", self.url, "--suri", suri, "--json", *arguments], catch_exceptions=False
        )
        assert result.exit_code == 0, result.output
        return dict(json.loads(result.stdout))

    def publish(self, enclave_id: str, *more: str, version: str = "1.1.0", suri: str = "//Alice") -> dict[str, object]:
        arguments = ["--network-key", signing.network_key_text(self.network), "--sign-key", str(self.key_file)]
        arguments += ["--version", version, "--origin-url", "http://h/0xab.tar.gz", *more, enclave_id]
        return self.run("publish", *arguments, suri=suri)

    def refused(self, enclave_id: str, suri: str = "//Alice") -> str:
        with pytest.raises(DcupgradeError) as caught:
            self.publish(enclave_id, suri=suri)
        return caught.value.code

    def state(self) -> pallet.PalletState:
        with pallet.PublisherChain.connect(self.url) as chain:
            return chain.state()


def heard(state: pallet.PalletState, enclave_id: str) -> bool:
    return state.program is not None and state.program["enclave_id"] == enclave_id


def test_publish_again_older_and_revoke(tmp_path: Path) -> None:
    # Another pallet index and five fields; the base runtime is what the other trials publish on.
    chain = DevChain(runtime="moved", block_time_ms=300)
    chain.start_now()
    try:
        manager = Manager(chain, tmp_path)
        first, second, third = (secrets.token_hex(32) for _ in range(3))
        manager.publish(first, version="1.0.0")
        assert len(manager.publish(second, "--cid", CID)["blocks"]) == 2  # type: ignore[arg-type]
        state = manager.state()
        assert heard(state, second)
        assert state.program is not None
        assert state.program["origin_url"] == "http://h/0xab.tar.gz"  # a text with 0x in it stays a text
        assert state.program.get("mirr_cids", [CID]) == [CID]
        assert state.height_of(first) is not None
        assert manager.refused(second) == "RELEASE_ALREADY_PUBLISHED"
        assert manager.refused(first) == "PUBLISH_NOT_NEWER"
        assert manager.refused(third, suri="//Bob") == "PUBLISH_DISPATCH_FAILED"
        assert heard(manager.state(), second)
        # What failed above left the list alone; an id that is only listed is not listed again.
        manager.publish(third, "--list-only")
        assert len(manager.publish(third)["blocks"]) == 1  # type: ignore[arg-type]
        manager.run("revoke", third)
        assert manager.state().height_of(third) is None
        with pytest.raises(DcupgradeError, match="RELEASE_NOT_LISTED"):
            manager.run("revoke", third)
    finally:
        chain.stop_now()


def test_without_sudo_the_call_data_are_printed_for_governance(
    shared_chain: DevChain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager, enclave_id = Manager(shared_chain, tmp_path), secrets.token_hex(32)
    asked = manager.publish(enclave_id, "--print-call")
    assert asked["sudo"] is True
    monkeypatch.setattr(pallet.PublisherChain, "has_sudo", False)
    printed = manager.publish(enclave_id)
    assert printed == {**asked, "sudo": False}
    assert manager.state().height_of(enclave_id) is None  # nothing was sent

    # Whoever submits these bytes makes exactly these calls.
    with SubstrateInterface(url=shared_chain.ws_url) as node:
        node.init_runtime()
        decoded = []
        for call in printed["calls"]:  # type: ignore[attr-defined]
            found = node.runtime_config.create_scale_object("Call", metadata=node.metadata)
            decoded.append(found.decode(ScaleBytes(call["data"])))
    names = [(call["call_module"], call["call_function"]) for call in decoded]
    assert names == [("DcNode", "set_enclave_id"), ("DcNode", "set_dc_program")]
    arguments = {argument["name"]: argument["value"] for argument in decoded[1]["call_args"]}
    assert arguments["enclave_id"] == enclave_id
    assert arguments["origin_url"] == "http://h/0xab.tar.gz"
    listed = {argument["name"]: argument["value"] for argument in decoded[0]["call_args"]}
    signing.verify_signatures(enclave_id, [listed["signature"]], [signing.network_key_text(manager.network)])


def test_a_chain_without_the_pallet_is_named_as_such(shared_chain: DevChain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pallet, "STORAGE", pallet.STORAGE | {"AnotherItem"})
    with (
        pytest.raises(DcupgradeError, match="PUBLISH_PALLET_MISSING"),
        pallet.PublisherChain.connect(shared_chain.ws_url),
    ):
        pass
