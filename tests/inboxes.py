"""Real inbox processes on a database, a Redis and a broker of the caller's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from django.db import connection

from tests.servers import Broker, until

ROOT = Path(__file__).resolve().parents[1]
UP = "broker_connection_up"


def database_url() -> str:
    """Where this test's database is, for another process."""
    known = connection.settings_dict
    if connection.vendor == "sqlite":
        return f"sqlite:///{known['NAME']}"
    return f"postgresql://{quote(known['USER'])}@{known['HOST']}:{known['PORT']}/{known['NAME']}"


class InboxProcess:
    """One `manage.py run_inbox`. It is given SIGKILL at the end: nothing may depend on a good-bye."""

    def __init__(self, *, env: dict[str, str], log: Path) -> None:
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "manage.py", "run_inbox"],
                cwd=ROOT,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def says(self, event: str, *, times: int = 1, within_s: float = 90.0) -> None:
        """Wait until it has logged this so often."""
        try:
            until(
                lambda: self.log.count(event) >= times, what=f"no {event} number {times}", within_s=within_s
            )
        except TimeoutError as error:
            raise TimeoutError(f"{error}: {self.log[-2000:]}") from None

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(10)

    def cpu_s(self) -> float:
        """Processor time it has used so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def inbox_environment(*, broker: Broker, redis_url: str, database_url: str, **more: str) -> dict[str, str]:
    """The environment of a central process beside these services, and nothing of the caller's settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SGM_", "DJANGO_"))}
    return {
        **kept,
        "PYTHONUNBUFFERED": "1",
        "DJANGO_SETTINGS_MODULE": "smartgrid.settings",
        "SGM_SECRET_KEY": "only for tests, and long enough to keep Django's checks content 0123456789",
        "SGM_DATABASE_URL": database_url,
        "SGM_REDIS_URL": redis_url,
        "SGM_MQTT_URL": broker.url,
        "SGM_MQTT_INBOX_PASSWORD": broker.passwords["central-inbox"],
        "SGM_MQTT_WORKER_PASSWORD": broker.passwords["central-worker"],
        **more,
    }


@contextmanager
def inbox_processes(count: int, *, env: dict[str, str], directory: Path) -> Iterator[list[InboxProcess]]:
    """So many inboxes, each connected to the broker."""
    processes = [InboxProcess(env=env, log=directory / f"inbox-{number}.log") for number in range(count)]
    try:
        for process in processes:
            process.says(UP)
        yield processes
    finally:
        for process in processes:
            process.kill()
