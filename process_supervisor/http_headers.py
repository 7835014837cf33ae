"""Decode the HTTP response headers that control resuming and waiting (RFC 9110). Pure."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

MODIFIED_AGE_MIN = timedelta(seconds=60)
RETRY_AFTER_S_MAX = 86400.0
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)\Z")


def retry_after_s(headers: Mapping[str, str], now_unix_s: float) -> float:
    """Return the seconds that the server asks to wait: 0 if it does not ask, at most RETRY_AFTER_S_MAX."""
    text = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[0-9]{1,18}", text):
        return min(float(text), RETRY_AFTER_S_MAX)
    date = _date(text)
    if date is None:
        return 0.0
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    seconds = (date - datetime.fromtimestamp(now_unix_s, UTC)).total_seconds()
    return min(max(seconds, 0.0), RETRY_AFTER_S_MAX)


def _date(text: str) -> datetime | None:
    """Return an HTTP or mail date, without a zone if it names none; None if the text is no valid date."""
    try:
        return parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):
        return None


def content_length(headers: Mapping[str, str]) -> int | None:
    """Return Content-Length in bytes; None if it is missing or malformed."""
    text = headers.get("Content-Length", "")
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None


def strong_validator(headers: Mapping[str, str]) -> str | None:
    """Return a strong validator for a later `If-Range`: an entity tag, or a time well before the server's own clock.

    A time is only a weak validator if the artefact may have changed twice within it (RFC 9110, 8.8.2.2 and 13.1.5).
    """
    etag = headers.get("ETag")
    if etag is not None:
        return etag if re.fullmatch(r'"[\x21\x23-\x7e]{1,200}"', etag) else None
    text = headers.get("Last-Modified", "")
    date, modified = _date(headers.get("Date", "")), _date(text)
    if date is None or modified is None or date.tzinfo is None or modified.tzinfo is None:
        return None
    return text if date - modified >= MODIFIED_AGE_MIN else None


def continues_at(headers: Mapping[str, str], size: int, total: int | None, validator: str | None) -> int | None:
    """Return the artefact's total size if a 206 answer continues a part of `size` bytes with `validator`, else None.

    The answer may end before the artefact does. Some proxies strip Content-Range. In that case the answer must have
    exactly the missing length, and the same validator.
    """
    found = strong_validator(headers)
    if found is not None and found != validator:
        return None
    text = headers.get("Content-Range")
    if text is None:
        exact = total is not None and found is not None and content_length(headers) == total - size
        return total if exact else None
    match = _CONTENT_RANGE.match(text)
    if match is None:
        return None
    first, last = int(match[1]), int(match[2])
    whole = total if match[3] == "*" else int(match[3])
    if whole is None or first != size or not first <= last < whole or total not in (None, whole):
        return None
    return whole
