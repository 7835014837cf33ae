"""The places of a key set's bytes while a vault collects and delivers it: memory and files of the processes."""

import base64
import os

import pytest

from devnet.scan import memory_pieces
from devnet.tools import free_port
from keyvault.client import VaultClient
from tests.e2e.vault_parts.kit import TOKEN, Bench, ready

pytestmark = pytest.mark.e2e


def copies(pid: int, secret: bytes) -> int:
    """How often halves of the secret are in a process's memory, raw, as hex, or as base64."""
    half = len(secret) // 2
    forms = [secret[:half], secret[half:], secret[:half].hex().encode(), base64.b64encode(secret[:24])]
    return sum(piece.count(form) for form in forms for piece in memory_pieces(pid, 2 * len(secret)))


async def test_a_vault_keeps_no_key_in_memory_between_calls_and_none_unsealed_on_disk(bench: Bench) -> None:
    port, secret = free_port(), os.urandom(64)
    vault, old, new = bench.vault(), bench.node("1.0.0"), bench.node("1.1.0")
    process = bench.start_vault(vault, port)
    source = bench.start_node(old, port, "make:" + secret.hex(), upgraders=vault.enclave_id)
    url = f"http://127.0.0.1:{source.event()['port']}"
    source.event()
    async with VaultClient(f"http://127.0.0.1:{port}", TOKEN) as client:
        await ready(client)
        sealed = await client.collect(url, old.enclave_id)
        enclave = process.enclave_pid()
        assert copies(source.enclave_pid(), secret) > 0  # the control: where the keys must be, the scan finds them
        assert copies(enclave, secret) == 0
        evidence = bench.evidence(new, [(5, old.enclave_id), (9, new.enclave_id)])
        await client.permit(old.enclave_id, new.enclave_id, sealed["key_set_id"], evidence)
        target = bench.start_node(new, port, "ask", upgraders=vault.enclave_id, folder="sealed-new")
        target.event()
        assert target.event()["key_set_id"] == sealed["key_set_id"]
        assert copies(target.enclave_pid(), secret) > 0
        for pid in (enclave, process.popen.pid, target.popen.pid):  # the vault, and both software CPUs
            assert copies(pid, secret) == 0
    files = [file for folder in ("store", "sealed-new") for file in (bench.folder / folder).iterdir()]
    assert len(files) >= 3
    assert not any(secret[:32] in file.read_bytes() or secret[32:] in file.read_bytes() for file in files)
