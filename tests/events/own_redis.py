"""A Redis of a test's own, which may be killed, frozen and started again on its port: empty, as in the demo."""

from __future__ import annotations

import secrets
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from smartgrid.demo.broker import redis_command
from smartgrid.demo.state import free_port
from tests.servers import until


class OwnRedis:
    def __init__(self, directory: Path) -> None:
        self._port, self._password = free_port(), secrets.token_hex(8)
        self._argv = list(redis_command(directory=directory, port=self._port, password=self._password))
        self._log = directory / "redis.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://:{self._password}@127.0.0.1:{self._port}/0"

    def start(self) -> None:
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                self._argv, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
        until(self._answers, what="Redis did not answer")

    def kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait(10)

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _answers(self) -> bool:
        with redis.Redis.from_url(self.url, socket_connect_timeout=1) as client:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False


@contextmanager
def own_redis(directory: Path) -> Iterator[OwnRedis]:
    running = OwnRedis(directory)
    running.start()
    try:
        yield running
    finally:
        running.kill()
