"""What the service manager hears of a process: `sd_notify(3)`, without its library."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping

import structlog

log = structlog.get_logger()

# The unit files allow 30 s; once a second is plenty, whatever turns how often.
ALIVE_PERIOD_S = 1.0


class ServiceManager:
    """Tells whoever started this process how it fares; silent where NOTIFY_SOCKET is not set.

    `clock` is in seconds. Nothing here may fail the process, and nothing blocks.
    """

    def __init__(self, *, clock: Callable[[], float], environment: Mapping[str, str] = os.environ) -> None:
        self._clock = clock
        address = environment.get("NOTIFY_SOCKET", "")
        # A leading @ stands for the null byte of Linux' abstract namespace.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket = (
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) if address else None
        )
        self._alive_due_s = 0.0
        self._is_ready = False
        self._is_failing = False

    def ready(self) -> None:
        """The process does its work; said once."""
        if not self._is_ready:
            self._is_ready = self._tell("READY=1")

    def alive(self) -> None:
        """Feed the watchdog (WatchdogSec=)."""
        now = self._clock()
        if now >= self._alive_due_s:
            self._alive_due_s = now + ALIVE_PERIOD_S
            self._tell("WATCHDOG=1")

    def status(self, text: str) -> None:
        """One line for people, as `systemctl status` shows it."""
        self._tell(f"STATUS={text}")

    def stopping(self) -> None:
        self._tell("STOPPING=1")

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _tell(self, state: str) -> bool:
        if self._socket is None:
            return False
        try:
            self._socket.sendto(state.encode(), self._address)
        except OSError as error:
            if not self._is_failing:
                log.warning("the service manager cannot be told", state=state, error=str(error))
            self._is_failing = True
            return False
        self._is_failing = False
        return True
