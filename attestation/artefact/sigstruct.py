"""SIGSTRUCT (1,808 bytes): decoding, verification of its RSA signature as EINIT does it, and signing.

Layout: Intel SDM volume 3D, 38.13; field values as Intel's sgx_sign writes them (psw/ae/common, metadata.h).
The signature is RSA-3072 PKCS#1 v1.5 over SHA-256 of bytes 0-127 and 900-1027, exponent 3, all integers
little-endian. Q1 = floor(s^2 / n) and Q2 = floor((s^2 mod n) * s / n) are values that EINIT uses, so a SIGSTRUCT
with wrong ones would not start on a real CPU.
"""

import hashlib
import hmac
import struct
from dataclasses import dataclass, replace
from typing import Protocol

from attestation.errors import AttestationError
from attestation.sgx import DEBUG, INIT, MODE64BIT, XFRM_LEGACY, Attributes, flag_text, need_bytes, need_ints

SIGSTRUCT_SIZE = 1808
KEY_BYTES = 384
EXPONENT = 3
HEADER = bytes.fromhex("06000000e10000000000010000000000")
HEADER2 = bytes.fromhex("01010000600000006000000001000000")
_VENDORS = (0, 0x8086)
ALL_ATTRIBUTES = Attributes(0xFFFF_FFFF_FFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF)
_LAYOUT = struct.Struct("<16sII16sI84s384sI384sIIBB2s16s16s16s32s16s16sHH12s384s384s")
_SIGNED = (slice(0, 128), slice(900, 1028))
# EMSA-PKCS1-v1_5 prefix of a SHA-256 DigestInfo (RFC 8017, 9.2, note 1)
_DIGEST_INFO = bytes.fromhex("3031300d060960864801650304020105000420")


class Rsa3072Key(Protocol):
    """The private key that signing needs: `sign` returns the big-endian PKCS#1 v1.5 SHA-256 signature."""

    @property
    def modulus(self) -> int:
        """The public modulus n."""
        ...

    @property
    def exponent(self) -> int:
        """The public exponent e."""
        ...

    def sign(self, message: bytes) -> bytes:
        """Return the signature of `message` (RSA PKCS#1 v1.5, SHA-256): 384 bytes, big-endian."""
        ...


def _invalid(why: str) -> AttestationError:
    return AttestationError(
        code="SIGSTRUCT_INVALID",
        what="a SIGSTRUCT cannot be used",
        why=why,
        action="Ask the publisher for a SIGSTRUCT made by an SGX signing tool.",
    )


def _signature_bad(why: str) -> AttestationError:
    return AttestationError(
        code="SIGSTRUCT_SIGNATURE_BAD",
        what="a SIGSTRUCT does not verify",
        why=why,
        action="Fetch the release again; if it stays so, the release is broken.",
    )


def _little(value: int) -> bytes:
    return value.to_bytes(KEY_BYTES, "little")


def _valid_date(date: int) -> bool:
    """Tell whether `date` is BCD 0xYYYYMMDD with a possible month and day."""
    text = f"{date:08x}"
    return text.isdecimal() and 1 <= int(text[4:6]) <= 12 and 1 <= int(text[6:8]) <= 31


@dataclass(frozen=True, slots=True)
class SigStruct:
    """A SIGSTRUCT. Decoding checks its form only; `verify()` checks the signature.

    `date` is BCD, 0xYYYYMMDD, by convention only (no CPU checks it, and some signing tools write 0). `modulus`,
    `signature`, `q1`, `q2` are 384 little-endian bytes each.
    """

    date: int
    modulus: bytes
    signature: bytes
    mrenclave: bytes
    attributes: Attributes
    attribute_mask: Attributes
    q1: bytes
    q2: bytes
    vendor: int = 0
    swdefined: int = 0
    miscselect: int = 0
    miscmask: int = 0xFFFF_FFFF
    cet_attributes: int = 0
    cet_mask: int = 0
    isvfamilyid: bytes = bytes(16)
    isvextprodid: bytes = bytes(16)
    isvprodid: int = 0
    isvsvn: int = 0

    def __post_init__(self) -> None:
        need_bytes(
            "SIGSTRUCT",
            modulus=(self.modulus, KEY_BYTES),
            signature=(self.signature, KEY_BYTES),
            enclavehash=(self.mrenclave, 32),
            q1=(self.q1, KEY_BYTES),
            q2=(self.q2, KEY_BYTES),
            isvfamilyid=(self.isvfamilyid, 16),
            isvextprodid=(self.isvextprodid, 16),
        )
        need_ints(
            "SIGSTRUCT",
            date=(self.date, 32),
            swdefined=(self.swdefined, 32),
            miscselect=(self.miscselect, 32),
            miscmask=(self.miscmask, 32),
            cet_attributes=(self.cet_attributes, 8),
            cet_mask=(self.cet_mask, 8),
            isvprodid=(self.isvprodid, 16),
            isvsvn=(self.isvsvn, 16),
        )
        if self.vendor not in _VENDORS:
            raise _invalid(f"VENDOR is {self.vendor!r} instead of 0 or 0x8086")

    @classmethod
    def decode(cls, data: bytes) -> "SigStruct":
        """Decode 1,808 bytes. Raises SIGSTRUCT_INVALID."""
        if len(data) != SIGSTRUCT_SIZE:
            raise _invalid(f"it has {len(data)} bytes instead of {SIGSTRUCT_SIZE}")
        (
            header, vendor, date, header2, swdefined, rsv1, modulus, exponent, signature, miscselect, miscmask,
            cet, cet_mask, rsv2, family, attributes, attribute_mask, mrenclave, rsv3, ext, prodid, svn, rsv4, q1, q2,
        ) = _LAYOUT.unpack(data)  # fmt: skip
        if header != HEADER or header2 != HEADER2:
            raise _invalid("its header is another")
        if exponent != EXPONENT:
            raise _invalid(f"its exponent is {exponent} instead of {EXPONENT}")
        if any(map(any, (rsv1, rsv2, rsv3, rsv4))):
            raise _invalid("reserved bytes are not zero")
        return cls(
            date, modulus, signature, mrenclave, Attributes.decode(attributes), Attributes.decode(attribute_mask),
            q1, q2, vendor, swdefined, miscselect, miscmask, cet, cet_mask, family, ext, prodid, svn,
        )  # fmt: skip

    def encode(self) -> bytes:
        """Encode to 1,808 bytes."""
        return _LAYOUT.pack(
            HEADER, self.vendor, self.date, HEADER2, self.swdefined, b"", self.modulus, EXPONENT, self.signature,
            self.miscselect, self.miscmask, self.cet_attributes, self.cet_mask, b"", self.isvfamilyid,
            self.attributes.encode(), self.attribute_mask.encode(), self.mrenclave, b"", self.isvextprodid,
            self.isvprodid, self.isvsvn, b"", self.q1, self.q2,
        )  # fmt: skip

    def signed_bytes(self) -> bytes:
        """Return the 256 bytes that the signature covers."""
        encoded = self.encode()
        return b"".join(encoded[part] for part in _SIGNED)

    def verify(self) -> None:
        """Raise SIGSTRUCT_SIGNATURE_BAD unless signature, Q1 and Q2 are right for the embedded modulus.

        It proves that the owner of that key signed these fields. MRSIGNER identifies the key.
        """
        n, s = int.from_bytes(self.modulus, "little"), int.from_bytes(self.signature, "little")
        if n.bit_length() != KEY_BYTES * 8 or not n & 1:
            raise _signature_bad("the modulus is not one of RSA-3072")
        if not 0 < s < n:
            raise _signature_bad("the signature is not below the modulus")
        q1, rest = divmod(s * s, n)
        q2, message = divmod(rest * s, n)
        digest = _DIGEST_INFO + hashlib.sha256(self.signed_bytes()).digest()
        # Compared whole, never parsed: with exponent 3, a lenient parser accepts forgeries (Bleichenbacher).
        padded = b"\x00\x01" + b"\xff" * (KEY_BYTES - 3 - len(digest)) + b"\x00" + digest
        if message.to_bytes(KEY_BYTES, "big") != padded:
            raise _signature_bad("the RSA signature is not one over these fields")
        if self.q1 != _little(q1) or self.q2 != _little(q2):
            raise _signature_bad("Q1 or Q2 do not belong to the signature")

    def need_mrenclave(self, measured: bytes) -> None:
        """Raise SIGSTRUCT_MRENCLAVE_MISMATCH unless ENCLAVEHASH equals the measurement (32 bytes)."""
        if not hmac.compare_digest(self.mrenclave, measured):
            raise AttestationError(
                code="SIGSTRUCT_MRENCLAVE_MISMATCH",
                what="the image is not the one that was signed",
                why=f"ENCLAVEHASH is {self.enclave_id}, the image measures {measured.hex()}",
                action="Fetch the release again; if it stays so, the release is broken.",
                expected=self.enclave_id,
                found=measured.hex(),
            )

    def need_pinned_attributes(self) -> None:
        """Raise SIGSTRUCT_NOT_PINNED unless KSS, AEX-Notify and EXINFO are fixed to off.

        KSS, AEX-Notify (in ATTRIBUTES) and EXINFO (in MISCSELECT) change the seal key: if the same image were signed
        again with one of them, it could not open its earlier sealed files.
        """
        flags, fixed = self.attributes.flags & ~INIT, self.attribute_mask.flags | INIT
        if fixed == (1 << 64) - 1 and flags == MODE64BIT and self.miscmask == 0xFFFF_FFFF and self.miscselect == 0:
            return
        raise AttestationError(
            code="SIGSTRUCT_NOT_PINNED",
            what=f"enclave {self.enclave_id} is not signed as a vault",
            why=f"ATTRIBUTES are {flag_text(flags)} under the mask {self.attribute_mask.flags:#x}, MISCSELECT is "
            f"{self.miscselect:#x} under {self.miscmask:#x}; expected are MODE64BIT and 0, with every bit fixed",
            action="Sign it without KSS, AEX-Notify and EXINFO (docs/gramine.md).",
        )

    def need_production(self) -> None:
        """Raise SIGSTRUCT_DEBUG if this can only start as a debug enclave.

        No peer gives keys to a debug enclave, so it is refused before a running node is stopped for it.
        """
        if (self.attributes & self.attribute_mask).flags & DEBUG:
            raise AttestationError(
                code="SIGSTRUCT_DEBUG",
                what=f"enclave {self.enclave_id} cannot be used",
                why="it is signed as a debug enclave, whose memory its host can read",
                action="Ask the publisher for a production build.",
            )

    @property
    def mrsigner(self) -> bytes:
        """MRSIGNER: SHA-256 over the modulus as stored (32 bytes)."""
        return hashlib.sha256(self.modulus).digest()

    @property
    def enclave_id(self) -> str:
        """ENCLAVEHASH as 64 lower-case hex digits."""
        return self.mrenclave.hex()


def sign_sigstruct(
    key: Rsa3072Key,
    mrenclave: bytes,
    *,
    date: int,
    isvprodid: int = 0,
    isvsvn: int = 0,
    debug: bool = False,
    flags: int = MODE64BIT,
    xfrm: int = XFRM_LEGACY,
    attribute_mask: Attributes = ALL_ATTRIBUTES,
) -> SigStruct:
    """Sign an enclave. Every ATTRIBUTES and MISCSELECT bit is fixed, except those that `attribute_mask` leaves free.

    `date` is BCD 0xYYYYMMDD. Raises SIGSTRUCT_INVALID for another `date`, SIGSTRUCT_KEY_INVALID unless `key` is
    RSA-3072 with exponent 3.
    """
    if key.exponent != EXPONENT or key.modulus.bit_length() != KEY_BYTES * 8:
        raise AttestationError(
            code="SIGSTRUCT_KEY_INVALID",
            what="this key cannot sign an enclave",
            why=f"it is RSA-{key.modulus.bit_length()} with exponent {key.exponent}",
            action="Make one: openssl genrsa -3 -out enclave-key.pem 3072",
        )
    if not _valid_date(date):
        raise _invalid(f"DATE {date:#010x} is no BCD date")
    unsigned = SigStruct(
        date=date,
        modulus=_little(key.modulus),
        signature=bytes(KEY_BYTES),
        mrenclave=mrenclave,
        attributes=Attributes(flags | (DEBUG if debug else 0), xfrm),
        attribute_mask=attribute_mask,
        q1=bytes(KEY_BYTES),
        q2=bytes(KEY_BYTES),
        isvprodid=isvprodid,
        isvsvn=isvsvn,
    )
    s = int.from_bytes(key.sign(unsigned.signed_bytes()), "big")
    q1, rest = divmod(s * s, key.modulus)
    signed = replace(unsigned, signature=_little(s), q1=_little(q1), q2=_little(rest * s // key.modulus))
    signed.verify()
    return signed
