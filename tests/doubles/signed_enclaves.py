"""Signed enclaves from the known-answer vectors, and a signing key for tests."""

import functools
from dataclasses import replace

from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256

from attestation.artefact.sigstruct import SigStruct

ENARX = "b999536238fcf4e9d360ef6cd3e0c20ef8a684c7b93f74a9c4a4c6d517d61fc0"


FORTANIX = "784acfd7d5096a8f0fbd3265760bff21b120f62407a9a9e5ba31aa3c8ed198fc"


class Key:
    """A signing key that can also sign fields that `sign_sigstruct` does not offer."""

    def __init__(self, key: RSAPrivateKey | None = None) -> None:
        self._key = key or rsa_key()
        numbers = self._key.public_key().public_numbers()
        self.modulus, self.exponent = numbers.n, numbers.e

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message, PKCS1v15(), SHA256())

    def raw(self, message: int) -> int:
        numbers = self._key.private_numbers()
        return pow(message, numbers.d, self.modulus)

    def with_signature(self, sigstruct: SigStruct, s: int) -> SigStruct:
        q1, rest = divmod(s * s, self.modulus)
        q2 = rest * s // self.modulus
        little = [value.to_bytes(384, "little") for value in (s, q1, q2)]
        return replace(sigstruct, signature=little[0], q1=little[1], q2=little[2])

    def resign(self, sigstruct: SigStruct) -> SigStruct:
        return self.with_signature(sigstruct, int.from_bytes(self.sign(sigstruct.signed_bytes()), "big"))


@functools.cache
def rsa_key(bits: int = 3072, exponent: int = 3) -> RSAPrivateKey:
    return generate_private_key(exponent, bits)
