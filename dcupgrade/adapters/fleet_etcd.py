"""A fleet in etcd v3, over its JSON gateway. One transaction takes a slot or fails.

Keys below `/dcupgrade/<fleet>/`: `limit` (a number); `slots/<n>`, `halt`, `outcomes/<node>`, `versions/<node>` (JSON).
Only the last outcome of each node is kept, so that the data grows with the fleet and not with time.
The maintained Python clients of etcd depend on gRPC; through the gateway, four calls are enough.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import aiohttp

from dcupgrade.machine import fleet as rules
from dcupgrade.machine.fleet import Fleet, Halt, Member, Outcome, Slot

from .fleet import decode, decode_value, read_answer, unreachable

T = TypeVar("T")
TIMEOUT_S = 5.0
SLOTS_MAX = 10_000


class EtcdFleet:
    """A fleet in etcd. Endpoints are asked in order, starting with the one that answered last."""

    def __init__(
        self,
        name: str,
        endpoints: Sequence[str],
        *,
        user: str = "",
        password_file: Path | None = None,
        ca_file: Path | None = None,
        cert_file: Path | None = None,
        key_file: Path | None = None,
    ) -> None:
        self._prefix = f"/dcupgrade/{name}/"
        self._endpoints = [url.rstrip("/") for url in endpoints]
        self._user, self._password_file = user, password_file
        self._tls = (ca_file, cert_file, key_file)
        self._token = ""
        self._session: aiohttp.ClientSession | None = None

    async def read(self) -> Fleet:
        """See `FleetEngine`. A slot that cannot be decoded counts as held: a person may be editing it."""
        found = await self._values()
        limit = _limit(found.get("limit", b""))
        slots: list[Slot | None] = []
        for number in range(limit):
            value = found.get(f"slots/{number}")
            slots.append(None if value is None else _slot(value))
        return Fleet(tuple(slots), _halt(found.get("halt")), _outcomes(found))

    async def put(self, number: int, slot: Slot) -> bool:
        """See `FleetEngine`."""
        absent = [self._absent(f"slots/{number}"), self._absent("halt")]
        answer = await self._call(
            "kv/txn", {"compare": absent, "success": [self._put(f"slots/{number}", rules.to_json(slot))]}
        )
        return answer.get("succeeded") is True

    async def clear(self, number: int, holder: str, outcome: Outcome | None) -> None:
        """See `FleetEngine`."""
        key = f"slots/{number}"
        value = (await self._values()).get(key)
        if value is None or _slot(value).holder != holder:
            return
        same = {"key": self._key(key), "target": "VALUE", "result": "EQUAL", "value": _b64(value)}
        then: list[dict[str, Any]] = [{"requestDeleteRange": {"key": self._key(key)}}]
        if outcome is not None:
            then.append(self._put(f"outcomes/{outcome.node}", rules.to_json(outcome)))
        await self._call("kv/txn", {"compare": [same], "success": then})

    async def set_halt(self, halt: Halt | None) -> None:
        """See `FleetEngine`."""
        if halt is not None:
            await self._call("kv/put", self._put("halt", rules.to_json(halt))["requestPut"])
            return
        outcomes = self._prefix + "outcomes/"
        then = [
            {"requestDeleteRange": {"key": self._key("halt")}},
            {"requestDeleteRange": {"key": _b64(outcomes.encode()), "range_end": _b64(_after(outcomes))}},
        ]
        await self._call("kv/txn", {"success": then})

    async def set_limit(self, slots: int) -> None:
        """Set how many nodes may upgrade at once."""
        await self._call("kv/put", {"key": self._key("limit"), "value": _b64(str(slots).encode())})

    async def publish(self, member: Member) -> None:
        """See `FleetEngine`."""
        await self._call("kv/put", self._put(f"versions/{member.node}", rules.to_json(member))["requestPut"])

    async def members(self) -> tuple[Member, ...]:
        """See `FleetEngine`."""
        first = f"{self._prefix}versions/"
        return tuple(_decoded(rules.member_from_json, (await self._range(first, _after(first))).values()))

    async def aclose(self) -> None:
        """See `FleetEngine`."""
        if self._session is not None:
            await self._session.close()

    async def _values(self) -> dict[str, bytes]:
        """Return the values that a decision needs, keyed by the part of their key after the prefix."""
        return await self._range(self._prefix, f"{self._prefix}t".encode())  # `versions/` is read separately

    async def _range(self, first: str, end: bytes) -> dict[str, bytes]:
        query = {"key": _b64(first.encode()), "range_end": _b64(end)}
        answer = await self._call("kv/range", query)
        found = {}
        for item in answer.get("kvs") or []:
            key = base64.b64decode(item["key"]).decode("utf-8", "replace")
            found[key.removeprefix(self._prefix)] = base64.b64decode(item.get("value", ""))
        return found

    def _key(self, rest: str) -> str:
        return _b64((self._prefix + rest).encode())

    def _absent(self, rest: str) -> dict[str, Any]:
        return {"key": self._key(rest), "target": "CREATE", "result": "EQUAL", "create_revision": "0"}

    def _put(self, rest: str, value: Mapping[str, Any]) -> dict[str, Any]:
        return {"requestPut": {"key": self._key(rest), "value": _b64(json.dumps(value).encode())}}

    async def _call(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Ask the endpoints in turn. Raises FLEET_UNREACHABLE with the reason of the last one."""
        why = "there is no endpoint"
        for _ in range(len(self._endpoints)):
            url = self._endpoints[0]
            try:
                return await self._ask(url, path, body)
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError, KeyError, TypeError) as error:
                why = f"{url}: {error or type(error).__name__}"
                self._endpoints.append(self._endpoints.pop(0))
        raise unreachable("etcd", why)

    def _password(self) -> str:
        return self._password_file.read_text(encoding="utf-8").strip() if self._password_file else ""

    async def _ask(self, url: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        if self._user and not self._token:
            password = await asyncio.to_thread(self._password)
            answer = await self._post(f"{url}/v3/auth/authenticate", {"name": self._user, "password": password})
            self._token = str(answer["token"])
        try:
            return await self._post(f"{url}/v3/{path}", body)
        except PermissionError:
            if not self._user:
                raise
            self._token = ""  # tokens expire
            raise ValueError("etcd refused the token; it is asked for a new one") from None

    async def _post(self, url: str, body: Mapping[str, Any]) -> dict[str, Any]:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=TIMEOUT_S), connector=aiohttp.TCPConnector(ssl=self._context())
            )
        headers = {"Authorization": self._token} if self._token else {}
        async with self._session.post(url, json=body, headers=headers, allow_redirects=False) as answer:
            text = await read_answer(answer)
            if answer.status in (401, 403):
                raise PermissionError(f"HTTP {answer.status}")
            if answer.status != 200:
                raise ValueError(f"HTTP {answer.status}: {text[:120].decode('utf-8', 'replace')}")
            value = decode(text)
        if not isinstance(value, dict):
            raise ValueError("it answered no JSON object")
        return value

    def _context(self) -> ssl.SSLContext:
        ca_file, cert_file, key_file = self._tls
        context = ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
        if cert_file is not None:
            context.load_cert_chain(str(cert_file), str(key_file) if key_file else None)
        return context


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _after(prefix: str) -> bytes:
    """Return the end of the range of all keys with a prefix: the prefix with its last byte incremented."""
    data = prefix.encode()
    return data[:-1] + bytes([data[-1] + 1])


def _limit(value: bytes) -> int:
    text = value.decode("ascii", "replace").strip()
    if not text.isdigit() or not 0 <= int(text[:6]) <= SLOTS_MAX:
        raise unreachable("etcd", "it holds no number of slots: set it with `dcupgrade fleet limit N`")
    return int(text[:6])


def _slot(value: bytes) -> Slot:
    try:
        return rules.slot_from_json(decode_value(value))
    except ValueError:
        return Slot("(what cannot be decoded)", "", "", 0.0)


def _halt(value: bytes | None) -> Halt | None:
    if value is None:
        return None
    try:
        return rules.halt_from_json(decode_value(value))
    except ValueError:  # an invalid halt still means stop
        return Halt("", "a halt that cannot be decoded", 0.0)


def _outcomes(found: Mapping[str, bytes]) -> tuple[Outcome, ...]:
    listed = (value for key, value in found.items() if key.startswith("outcomes/"))
    return tuple(_decoded(rules.outcome_from_json, listed))


def _decoded(decoder: Callable[[Mapping[str, Any]], T], values: Iterable[bytes]) -> Iterator[T]:
    """Yield the values that can be decoded; a person may have written invalid ones."""
    for value in values:
        with contextlib.suppress(ValueError):
            yield decoder(decode_value(value))
