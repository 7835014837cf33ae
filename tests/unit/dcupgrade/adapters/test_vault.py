from typing import Any, cast

import pytest

from dcupgrade.adapters.vault import Vault
from dcupgrade.errors import DcupgradeError
from keyvault.client import VaultClient


class FakeClient:
    def __init__(self, tee: str) -> None:
        self.answer: dict[str, Any] = {
            "tee": tee,
            "key_sets": [
                {"collected_at_unix_s": 7, "wiped": False},
                {"collected_at_unix_s": 9, "wiped": True},
            ],
        }

    async def status(self) -> dict[str, Any]:
        return self.answer


def port(tee: str, *, allow_simulated: bool) -> Vault:
    client = cast(VaultClient, FakeClient(tee))
    return Vault(client, node_url="http://127.0.0.1:9", protocol="v2", allow_simulated=allow_simulated)


async def test_a_simulated_vault_is_not_used_unless_the_settings_say_so() -> None:
    vault = port("simulated", allow_simulated=False)
    with pytest.raises(DcupgradeError) as caught:
        await vault.status()
    assert (caught.value.code, caught.value.kind) == ("TEE_SIMULATED", "transient")
    assert vault.facts()["tee"] == "simulated"


@pytest.mark.parametrize(("tee", "allow"), [("simulated", True), ("gramine", False)])
async def test_what_is_shown_of_the_vault_is_its_own_word(tee: str, allow: bool) -> None:
    vault = port(tee, allow_simulated=allow)
    assert (vault.facts()["tee"], vault.facts()["key_sets"]) == ("unknown", 0)
    await vault.status()
    told = {"tee": tee, "enclave_id": "", "key_sets": 1, "sealed_unix_s": 7, "permit": ""}
    assert vault.facts() == told
