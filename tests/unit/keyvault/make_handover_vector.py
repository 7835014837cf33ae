"""Makes docs/handover-v2-vector.json; run as a module, it writes the file's text to standard output.

Everything but the ciphertext follows from the inputs; HPKE draws its own randomness, so that is checked by decryption.
"""

import hashlib
import json
import sys
from typing import Any

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from keyvault.handover.holder import Holder
from keyvault.handover.hpke import RealCrypto, load_private_key
from keyvault.handover.key_set import KeySet
from keyvault.handover.party import Party
from keyvault.handover.requester import Requester
from tests.doubles.vault_kit import CPU, GENESIS, NETWORK, Enclave


def stream(label: str, size: int) -> bytes:
    return hashlib.shake_256(b"dcupgrade handover v2 vector " + label.encode()).digest(size)


KEM_PRIVATE = stream("kem private key", 96)
KEY_SET = stream("key set", 64)


class FixedCrypto(RealCrypto):
    """Real primitives with given randomness; a given ciphertext stands for the one HPKE would draw."""

    def __init__(self, randoms: list[bytes], ciphertext: bytes | None = None) -> None:
        self._randoms = randoms
        self._ciphertext = ciphertext

    def random(self, size: int) -> bytes:
        value = self._randoms.pop(0)
        if len(value) != size:
            raise ValueError("randomness was asked for in another order")
        return value

    def kem_generate(self) -> tuple[Any, bytes]:
        mlkem = MLKEM768PrivateKey.from_seed_bytes(KEM_PRIVATE[:64]).public_key().public_bytes_raw()
        x25519 = X25519PrivateKey.from_private_bytes(KEM_PRIVATE[64:]).public_key().public_bytes_raw()
        return load_private_key(KEM_PRIVATE), mlkem + x25519

    def kem_seal(self, public_key: bytes, info: bytes, plaintext: bytearray) -> bytes:
        return self._ciphertext or super().kem_seal(public_key, info, plaintext)


def with_crypto(enclave: Enclave, crypto: FixedCrypto) -> Party:
    party = enclave.party
    return Party(party.genesis_hash, party.network_signatures, party.tee, crypto, party.verify_peer)


REQUESTER, HOLDER = Enclave("vector requester"), Enclave("vector holder")
NONCES = {name: stream(name, size) for name, size in (("requester nonce", 32), ("session", 16), ("holder nonce", 32))}
RECEIPT_KEY = stream("receipt key", 32)


def parties(ciphertext: bytes | None) -> tuple[Requester, Holder]:
    requester = Requester(with_crypto(REQUESTER, FixedCrypto([NONCES["requester nonce"]])))
    randoms = [NONCES["session"], NONCES["holder nonce"], RECEIPT_KEY]
    return requester, Holder(with_crypto(HOLDER, FixedCrypto(randoms, ciphertext)))


def transcript(ciphertext: bytes | None) -> dict[str, Any]:
    """Run the whole exchange and return its messages."""
    requester, holder = parties(ciphertext)
    said: dict[str, bytes] = {"hello": requester.hello()}
    said["challenge"] = holder.on_hello(said["hello"], 0.0)
    said["request"] = requester.on_challenge(said["challenge"])
    request = holder.on_request(said["request"], 0.0)
    with KeySet(KEY_SET) as key_set:
        said["delivery"] = holder.deliver(request, key_set, 0.0)
    requester.on_delivery(said["delivery"]).wipe()
    said["received"] = requester.received()
    said["received answer"] = holder.on_received(said["received"], 0.0).answer
    said["durable"] = requester.durable(canary=True)
    said["durable answer"] = holder.on_durable(said["durable"], 0.0).answer
    return {name: json.loads(message) for name, message in said.items()}


def inputs() -> dict[str, Any]:
    root = CPU.root
    return {
        "note": "made by this project on a simulated CPU with these root keys (derivations of Intel's simulation mode)",
        "cpu": {
            "report_root_key": root.report.hex(),
            "owner_epoch": root.owner_epoch.hex(),
            "report_key_id": root.report_key_id.hex(),
            "cpusvn": CPU.cpusvn.hex(),
        },
        "network_private_key": NETWORK.private_bytes_raw().hex(),
        "genesis": GENESIS.hex(),
        "requester_mrenclave": REQUESTER.id,
        "holder_mrenclave": HOLDER.id,
        "kem_private_key": KEM_PRIVATE.hex(),
        "receipt_key": RECEIPT_KEY.hex(),
        "key_set": KEY_SET.hex(),
        **{name.replace(" ", "_"): value.hex() for name, value in NONCES.items()},
    }


if __name__ == "__main__":
    made = {"inputs": inputs(), "messages": transcript(None)}
    sys.stdout.write(json.dumps(made, indent=1) + "\n")
