"""Times and durations as people read them. Pure."""

from datetime import UTC, datetime

_UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


def iso(unix_s: float) -> str:
    """A time in ISO 8601, UTC, to the second: `2026-11-28T14:03:05Z`."""
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def span(seconds: float) -> str:
    """A duration with at most two units: `0.4 s`, `42 s`, `3 min 5 s`, `2 h 10 min`, `3 d 4 h`."""
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s"
    whole = round(seconds)
    largest = next(index for index, (_, size) in enumerate(_UNITS) if whole >= size)
    parts: list[str] = []
    for unit, size in _UNITS[largest : largest + 2]:
        count, whole = divmod(whole, size)
        parts.append(f"{count} {unit}" if count or not parts else "")
    return " ".join(part for part in parts if part)
