"""The log never holds up control, whoever reads it."""

from __future__ import annotations

import os
import time

from edge.runtime.logs import LogStream


def test_lines_are_handed_on_in_order():
    reading, writing = os.pipe()
    stream = LogStream(writing)
    for number in range(100):
        stream.write(f"line {number}\n")
    stream.finish(within_s=10)
    assert os.read(reading, 10_000).decode() == "".join(f"line {number}\n" for number in range(100))


def test_log_that_nobody_reads_stops_nobody_and_says_what_it_dropped():
    reading, writing = os.pipe()
    stream = LogStream(writing, lines=50)
    begin = time.monotonic()
    for _ in range(1000):
        stream.write("x" * 1000 + "\n")
    stream.finish(within_s=0.1)
    assert time.monotonic() - begin < 5

    read = ""
    while '"log lines dropped"' not in read:
        read += os.read(reading, 100_000).decode()
        stream.write("y\n")


def test_log_whose_reader_has_died_stops_nobody():
    reading, writing = os.pipe()
    stream = LogStream(writing)
    os.close(reading)
    for _ in range(10):
        stream.write("line\n")
    stream.finish(within_s=10)
    os.close(writing)
