"""Log lines never block their writer; lost lines are counted and reported."""

import fcntl
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from keyvault.vault.log_writer import LINE_BYTES_MAX, LogWriter


@contextmanager
def logging_to(fd: int, **bounds: int) -> Iterator[logging.Logger]:
    logger = logging.Logger("trial")
    writer = LogWriter(fd, **bounds)
    logger.addHandler(writer)
    try:
        yield logger
    finally:
        writer.close()


def small_pipe() -> tuple[int, int]:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    return reader, writer


def read_to_end(fd: int) -> str:
    with os.fdopen(fd, "rb") as file:
        return file.read().decode()


def test_lines_arrive_in_order() -> None:
    reader, writer = os.pipe()
    with logging_to(writer) as logger:
        for number in range(100):
            logger.info("line %d", number)
    os.close(writer)
    assert read_to_end(reader).splitlines() == [f"line {number}" for number in range(100)]


def test_a_reader_that_stopped_reading_stops_nobody_and_is_told_how_many_lines_it_missed() -> None:
    reader, writer = small_pipe()
    with logging_to(writer, lines_max=10) as logger:
        for number in range(2_000):  # a handler that wrote in place would never return from here
            logger.info("line %d %s", number, "x" * 200)
        seen: list[str] = []
        drain = threading.Thread(target=lambda: seen.extend(read_to_end(reader).splitlines()))
        drain.start()
    os.close(writer)
    drain.join()
    notices = [line for line in seen if "were dropped" in line]
    arrived = [line for line in seen if line.startswith("line ")]
    assert sum(int(notice.split()[0]) for notice in notices) + len(arrived) == 2_000
    assert seen[-1] == notices[-1]


def test_the_queue_is_bounded_in_bytes_too() -> None:
    reader, writer = small_pipe()
    with logging_to(writer, queue_bytes_max=50_000) as logger:
        for _ in range(100):
            logger.info("y" * 10_000)
        drain = threading.Thread(target=lambda: lines.extend(read_to_end(reader).splitlines()))
        lines: list[str] = []
        drain.start()
    os.close(writer)
    drain.join()
    assert sum(map(len, lines)) < 80_000


def test_a_long_line_is_cut() -> None:
    reader, writer = os.pipe()
    with logging_to(writer) as logger:
        logger.info("z" * 50_000)
    os.close(writer)
    assert len(read_to_end(reader)) == LINE_BYTES_MAX + 1


def test_a_reader_that_is_gone_costs_lines_only() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with logging_to(writer) as logger:
        logger.info("nobody reads this")
    os.close(writer)


def test_a_descriptor_that_somebody_made_non_blocking_is_waited_for() -> None:
    reader, writer = small_pipe()
    os.set_blocking(writer, False)
    seen: list[str] = []
    drain = threading.Thread(target=lambda: seen.extend(read_to_end(reader).splitlines()))
    with logging_to(writer) as logger:
        for number in range(500):
            logger.info("line %d %s", number, "x" * 100)
        drain.start()
    os.close(writer)
    drain.join()
    assert len(seen) == 500


def test_a_record_that_cannot_be_formatted_is_counted_and_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    reader, writer = os.pipe()
    with logging_to(writer) as logger:
        logger.info("%d", "no number")
        logger.info("after")
    os.close(writer)
    assert read_to_end(reader).splitlines() == [
        "after",
        "1 log lines were dropped: the reader of this log was too slow",
    ]
    assert capfd.readouterr() == ("", "")
