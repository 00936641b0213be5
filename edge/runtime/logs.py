"""The node's log: one JSON object a line on standard error, which never holds up control."""

from __future__ import annotations

import atexit
import logging
import os
import queue
import sys
import threading
from typing import TextIO, cast

import structlog

# Some minutes of a site at which everything fails at once.
LINES = 10_000
# How long the end of a process waits for its last lines.
FLUSH_S = 1.0


class LogStream:
    """A stream whose `write` never waits: a thread of its own hands the lines on.

    Whoever reads the log may stall (a full pipe, a frozen journal). Then lines are dropped and counted, and
    the devices are controlled as before.
    """

    def __init__(self, descriptor: int, *, lines: int = LINES) -> None:
        self._descriptor = descriptor
        self._lines: queue.Queue[str] = queue.Queue(maxsize=lines)
        self._dropped = 0
        self._thread = threading.Thread(target=self._hand_on, name="log", daemon=True)
        self._thread.start()

    def write(self, text: str) -> None:
        try:
            self._lines.put_nowait(text)
        except queue.Full:
            self._dropped += 1

    def flush(self) -> None:
        """Nothing: the thread writes without delay."""

    def finish(self, *, within_s: float = FLUSH_S) -> None:
        """Wait until all is written, at most this long."""
        done = self._lines.all_tasks_done
        with done:
            done.wait_for(lambda: self._lines.unfinished_tasks == 0, timeout=within_s)

    def _hand_on(self) -> None:
        while True:
            line = self._lines.get()
            dropped, self._dropped = self._dropped, 0
            if dropped:
                line = f'{{"event": "log lines dropped", "count": {dropped}}}\n{line}'
            self._write_all(line.encode(errors="backslashreplace"))
            self._lines.task_done()

    def _write_all(self, data: bytes) -> None:
        while data:
            try:
                # Not through sys.stderr: its lock, held here, would keep the interpreter from ending.
                data = data[os.write(self._descriptor, data) :]
            except OSError:
                # Nobody reads it any more.
                return


def configure_logging() -> None:
    """Level from SGM_LOG_LEVEL (default info)."""
    level = logging.getLevelNamesMapping().get(os.environ.get("SGM_LOG_LEVEL", "info").upper(), logging.INFO)
    stream = LogStream(sys.stderr.fileno())
    atexit.register(stream.finish)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", stream)),
        cache_logger_on_first_use=True,
    )
