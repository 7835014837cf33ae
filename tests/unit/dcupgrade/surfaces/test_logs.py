import json
import logging

from dcupgrade.surfaces.logs import HumanFormatter, JsonFormatter


def record(message: str, error: Exception | None = None, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord(
        "dcupgrade", logging.WARNING, "file", 1, message, None, (type(error), error, None) if error else None
    )
    made.created = 0.0
    vars(made).update(extra)
    return made


def test_both_forms_carry_the_same_event() -> None:
    made = record("retry: download", event="retry", code="FETCH_STALLED")
    assert HumanFormatter().format(made) == (
        "1970-01-01T00:00:00Z WARNING retry: download (event=retry code=FETCH_STALLED)"
    )
    assert json.loads(JsonFormatter().format(made)) == {
        "at_unix_s": 0.0,
        "level": "warning",
        "logger": "dcupgrade",
        "message": "retry: download",
        "event": "retry",
        "code": "FETCH_STALLED",
    }


def test_an_exception_is_one_line_without_a_traceback() -> None:
    text = HumanFormatter().format(record("effect failed", ValueError("first\nsecond")))
    assert text.endswith("effect failed: ValueError: first second")
    assert "Traceback" not in text


def test_what_somebody_else_said_neither_makes_a_line_nor_moves_the_cursor() -> None:
    text = HumanFormatter().format(
        record("node: \x1b[2Jgone\r2026-01-01", detail="a\n1970-01-01T00:00:00Z INFO forged")
    )
    assert text == (
        "1970-01-01T00:00:00Z WARNING node: \\x1b[2Jgone\\r2026-01-01 (detail=a\\n1970-01-01T00:00:00Z INFO forged)"
    )
