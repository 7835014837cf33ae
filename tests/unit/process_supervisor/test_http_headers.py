"""HTTP headers about resuming a download and about Retry-After."""

import pytest

from process_supervisor.http_headers import RETRY_AFTER_S_MAX, continues_at, retry_after_s

NOW = 1_767_225_600.0  # Thu, 01 Jan 2026 00:00:00 GMT


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("3600", 3600.0),
        (" 7 ", 7.0),
        ("0", 0.0),
        ("Thu, 01 Jan 2026 00:02:00 GMT", 120.0),
        ("Thu, 01 Jan 2026 00:02:00", 120.0),
        ("Wed, 31 Dec 2025 00:00:00 GMT", 0.0),
        ("999999999999", RETRY_AFTER_S_MAX),
        ("Thu, 01 Jan 2099 00:00:00 GMT", RETRY_AFTER_S_MAX),
        ("-5", 0.0),
        ("soon", 0.0),
        ("", 0.0),
        ("9" * 400, 0.0),
        ("21 Oct 2" + "1" * 60 + " 0:00", 0.0),
        ("Thu, 01 Jan 2026 00:00:00 +" + "9" * 40, 0.0),
    ],
)
def test_how_long_a_server_wants_to_be_left_alone(text: str, seconds: float) -> None:
    assert retry_after_s({"Retry-After": text}, NOW) == seconds


@pytest.mark.parametrize(
    ("headers", "total", "whole"),
    [
        ({"Content-Range": "bytes 100-199/200"}, 200, 200),
        ({"Content-Range": "bytes 100-199/200"}, None, 200),
        ({"Content-Range": "bytes 100-149/200"}, 200, 200),  # shorter than what was asked for
        ({"Content-Range": "bytes 100-199/*"}, 200, 200),
        ({"Content-Range": "bytes 100-199/*"}, None, None),
        ({"Content-Range": "bytes 99-199/200"}, 200, None),
        ({"Content-Range": "bytes 100-200/200"}, 200, None),
        ({"Content-Range": "bytes 100-199/201"}, 200, None),
        ({"Content-Range": "bytes 100-50/200"}, 200, None),
        ({"Content-Range": "bytes 100-199/200", "ETag": '"v2"'}, 200, None),
        ({"Content-Range": "rubbish", "ETag": '"v1"', "Content-Length": "100"}, 200, None),
        # Content-Range was stripped on the way
        ({"ETag": '"v1"', "Content-Length": "100"}, 200, 200),
        ({"ETag": '"v1"', "Content-Length": "99"}, 200, None),
        ({"ETag": '"v1"', "Content-Length": "100"}, None, None),
        ({"Content-Length": "100"}, 200, None),
        ({}, 200, None),
    ],
)
def test_what_continues_a_part(headers: dict[str, str], total: int | None, whole: int | None) -> None:
    assert continues_at(headers, 100, total, '"v1"') == whole
