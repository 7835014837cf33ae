"""Runs of the reference node in this process, each version under a simulated CPU of the tests."""

import argparse
from pathlib import Path

from attestation.network import encode_multibase
from devnet.reference_node.main import Node, Policy

from .vault_kit import NETWORK, CpuTee, secs

POLICY = Policy(
    version="1.0.0",
    network_keys=(encode_multibase(NETWORK.public_key().public_bytes_raw()),),
    threshold=1,
    genesis_hash="0x" + "11" * 32,
    features=frozenset(),
    unsafe_simulated_tee=True,
    does_not_start=False,
    crash_after_s=None,
    format_tag="dc object v1",
    handover="v2",
    upgrader_ids=None,
    handover_fault=None,
)


def node(
    folder: Path, enclave: str = "1.0.0", *, first_install: bool = False, enclave_list: Path | None = None
) -> Node:
    signature = folder / "network.sig"
    signature.touch()
    arguments = argparse.Namespace(
        data=folder,
        upgrader="http://127.0.0.1:9",
        network_signature_file=signature,
        first_install=first_install,
        enclave_list=enclave_list,
    )
    return Node(POLICY, arguments, CpuTee(secs(enclave)))
