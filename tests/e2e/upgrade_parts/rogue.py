"""A program in a (simulated) enclave that tries to get a node's keys. It prints the result as one JSON line.

It has its own measured image. SIGSTRUCT and network signature decide what it is (debug, unsigned); its argument decides
what it does: "honest", "replayed" (the same request twice), "mistargeted" (a report for another enclave).
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import replace
from pathlib import Path

import aiohttp

from attestation.errors import AttestationError
from attestation.network import NetworkKeys, decode_multibase
from attestation.sgx import Report, TargetInfo
from attestation.tee.driver import TeeDriver
from attestation.tee.open import open_driver
from keyvault.errors import KeyvaultError
from keyvault.handover.http_client import exchange
from keyvault.handover.requester import Requester
from keyvault.node import NodePolicy, node_party


class _AimsElsewhere:
    """A TEE that targets its reports at itself instead of at the peer."""

    def __init__(self, driver: TeeDriver) -> None:
        self._driver = driver
        self.kind = driver.kind
        self.target_info, self.verify, self.seal_key = driver.target_info, driver.verify, driver.seal_key
        self.self_report = driver.self_report

    def report(self, _target: TargetInfo, report_data: bytes) -> Report:
        return self._driver.report(self._driver.target_info(), report_data)


async def attempt(behaviour: str, url: str, policy: NodePolicy, signature: bytes) -> dict[str, object]:
    """Run the requester's steps until the node refuses."""
    driver = open_driver()
    party = node_party(driver, policy, (signature,))
    if behaviour == "mistargeted":
        party = replace(party, tee=_AimsElsewhere(driver))
    requester = Requester(party, "")
    async with aiohttp.ClientSession() as session:
        challenge = await exchange(session, "POST", f"{url}/v2/hello", requester.hello())
        request = requester.on_challenge(challenge)
        delivery = await exchange(session, "POST", f"{url}/v2/request", request)
        if behaviour == "replayed":
            delivery = await exchange(session, "POST", f"{url}/v2/request", request)
        with requester.on_delivery(delivery) as key_set:
            return {"got": key_set.key_set_id}


def main() -> int:
    """Arguments: behaviour, node's URL, network key, genesis hash, file with the network signature."""
    behaviour, url, network_key, genesis, signature_file = sys.argv[1:6]
    policy = NodePolicy(NetworkKeys.parse([network_key]), bytes.fromhex(genesis.removeprefix("0x")))
    try:
        signature = decode_multibase(Path(signature_file).read_text().strip())
        outcome = asyncio.run(attempt(behaviour, url, policy, signature))
    except (KeyvaultError, AttestationError) as error:
        outcome = {"refused": error.code}
    sys.stdout.write(json.dumps(outcome) + "\n")
    return 0
