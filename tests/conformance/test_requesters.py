"""Requesters in Python and Go refuse what a strict holder tries; the suite finds each check that is left out."""

import asyncio
import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import aiohttp
import pytest

from attestation.errors import AttestationError
from keyvault.conformance import as_json, as_text
from keyvault.errors import KeyvaultError
from keyvault.handover import requester as requester_module
from keyvault.handover.http_client import confirm, fetch_key_set
from keyvault.handover.key_set import KeySet, key_set_id
from keyvault.handover.requester import Requester
from keyvault.requester_conformance import TRIALS, Ask, run_suite
from tests.doubles.go_peer import go_asks
from tests.doubles.vault_kit import SECRET, Enclave, enclave_id

WANTED = key_set_id(SECRET)
VAULT = frozenset({enclave_id("vault")})


def python(made: Callable[..., Any] = Requester) -> Ask:
    async def ask(url: str) -> str:
        requester = made(Enclave("node", expected=VAULT).party, WANTED)
        async with aiohttp.ClientSession() as session:
            try:
                keys: KeySet = await fetch_key_set(session, url, requester)
                await confirm(session, url, requester, asyncio.sleep(0, result=True))
            except (KeyvaultError, AttestationError) as error:
                return error.code
            keys.wipe()
            return ""

    return ask


async def failed(ask: Ask) -> set[str]:
    results = await run_suite(ask, Enclave("vault").party, Enclave("stranger").party, SECRET)
    assert len(results) == 1 + len(TRIALS)
    return {result.name for result in results if result.found}


async def test_the_requester_in_python_conforms() -> None:
    assert await failed(python()) == set()


async def test_the_requester_in_go_conforms(go: None) -> None:
    async def ask(url: str) -> str:
        said = await asyncio.to_thread(go_asks, url, wanted=WANTED, vaults=enclave_id("vault"))
        return str(said.get("code", ""))

    results = await run_suite(ask, Enclave("vault").party, Enclave("stranger").party, SECRET)
    assert as_json(results)["conforms"], as_text(results)


def without(check: str, instead: str) -> Ask:
    """A requester whose source has one check replaced."""
    source = inspect.getsource(requester_module)
    assert source.count(check) == 1, check
    changed = ModuleType("keyvault.handover.requester_changed")
    changed.__dict__["__package__"] = "keyvault.handover"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, changed.__name__, changed)
        exec(source.replace(check, instead), changed.__dict__)  # noqa: S102 - our own source
    return python(changed.Requester)


@pytest.mark.parametrize(
    ("check", "instead", "names"),
    [
        ('if fields["version"] != messages.VERSION', "if False", {"version"}),
        (
            'self._party.verify_peer(holder, fields["network_signatures"])',
            "pass",
            {"challenge-forged", "challenge-for-another", "unsigned", "stranger"},
        ),
        (
            'check_report_data(holder, self._transcript.report_data(CHALLENGE_TAG), "challenge")',
            "pass",
            {"replayed", "relayed", "other-chain", "other-offer", "challenge-role", "session-swapped"},
        ),
        ("self._party.tee.verify(report)", "pass", {"delivery-forged"}),
        ('check_same_enclave(report, self.holder, "delivery")', "pass", {"delivery-by-another"}),
        ('self._check_session(fields["session"], "delivery")', "pass", {"delivery-session"}),
        (
            'check_report_data(report, self._transcript.report_data(DELIVERY_TAG), "delivery")',
            "pass",
            {"delivery-role", "ciphertext-unbound"},
        ),
        ('if self._wanted not in ("", self._key_set_id)', "if False", {"other-keys"}),
        ('if fields["state"] != state', "if False", {"receipt-state"}),
        ('self._check_session(fields["session"], "acknowledgement")', "pass", {"receipt-session"}),
    ],
    ids=lambda value: None if isinstance(value, set) else str(value)[:40],
)
async def test_the_suite_finds_a_requester_without_one_of_its_checks(check: str, instead: str, names: set[str]) -> None:
    assert await failed(without(check, instead)) == names


async def test_a_requester_that_never_asks_fails_every_trial() -> None:
    async def ask(_: str) -> str:
        return "?"

    assert len(await failed(ask)) == 1 + len(TRIALS)
