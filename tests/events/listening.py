"""Those who listen, and the servers they listen to: the real application in a thread, or real processes."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from django.conf import settings

from smartgrid.demo.services import program
from smartgrid.event_streams.application import EventsApplication
from smartgrid.event_streams.feed import Timing
from smartgrid.event_streams.server import Server, listening_socket
from tests.inboxes import ROOT
from tests.servers import until

# All here is plain HTTP, and each context that a client makes for itself takes it 30 ms.
_NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

# As in production, but for what a test would have to wait for.
QUICK = Timing(
    keep_alive_s=0.2,
    read_s=0.5,
    retry_s=0.05,
    scopes_s=0.1,
    marks_s=0.5,
    mark_at_most_every_s=0.05,
    expiries_s=0.05,
)


@dataclass
class Event:
    """One message of a stream."""

    name: str
    data: Any
    id: str | None


@dataclass
class Stream:
    """A listener in a thread of its own: what it was told so far, and whether its stream has ended."""

    url: str
    headers: Mapping[str, str]
    events: list[Event] = field(default_factory=list)
    comments: list[str] = field(default_factory=list)
    retry: str = ""
    status: int = 0
    answer: Any = None
    answer_headers: Mapping[str, str] = field(default_factory=dict)
    last_id: str | None = None
    ended: threading.Event = field(default_factory=threading.Event)
    opened: threading.Event = field(default_factory=threading.Event)

    def start(self) -> Stream:
        self._client = httpx.Client(timeout=30, trust_env=False, verify=_NO_TLS)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        if not self.opened.wait(30):
            raise TimeoutError(f"{self.url} did not answer")
        return self

    def _run(self) -> None:
        try:
            with self._client.stream("GET", self.url, headers=dict(self.headers)) as response:
                self.status, self.answer_headers = response.status_code, response.headers
                if response.status_code != httpx.codes.OK:
                    response.read()
                    with suppress(ValueError):
                        self.answer = response.json()
                    return
                self.opened.set()
                self._response = response
                self._parse(response.iter_lines())
        except (httpx.HTTPError, RuntimeError, OSError):
            pass
        finally:
            self.ended.set()
            self.opened.set()

    def _parse(self, lines: Iterator[str]) -> None:
        name, data, place = "", "", None
        for line in lines:
            if not line:
                if place is not None:
                    self.last_id = place
                if data or name:
                    self.events.append(Event(name, json.loads(data), place))
                name, data, place = "", "", None
                continue
            key, _, value = line.partition(": ")
            match key:
                case "":
                    self.comments.append(value)
                case "event":
                    name = value
                case "data":
                    data = value
                case "id":
                    place = value
                case "retry":
                    self.retry = value
                case _:
                    self.comments.append(line.removeprefix(": "))

    def close(self) -> None:
        """Go, as a client goes: without a word to anybody."""
        if hasattr(self, "_response"):
            with suppress(Exception):
                stream = self._response.extensions["network_stream"]
                stream.get_extra_info("socket").shutdown(2)
        self.ended.wait(10)
        self._client.close()

    def heard(self, *names: str) -> list[Any]:
        """The data of all events of these names so far; of all but marks where none is given."""
        events = list(self.events)
        return [event.data for event in events if (event.name in names if names else event.name != "mark")]

    def hears(self, count: int, *names: str, within_s: float = 15.0) -> list[Any]:
        """Wait until it has heard so many."""
        try:
            until(lambda: len(self.heard(*names)) >= count, what="", within_s=within_s)
        except TimeoutError:
            raise TimeoutError(f"{len(self.heard(*names))} of {count} {names}: {self.events[-3:]}") from None
        return self.heard(*names)

    def has_place(self, *, within_s: float = 15.0) -> str:
        """Wait until it has somewhere to resume from."""
        until(lambda: self.last_id is not None, what="no id was told", within_s=within_s)
        assert self.last_id is not None
        return self.last_id

    def ends(self, *, within_s: float = 15.0) -> None:
        if not self.ended.wait(within_s):
            raise TimeoutError(f"the stream did not end: {self.events[-3:]} {self.comments[-3:]}")


@dataclass
class EventsThread:
    """The application behind its real server, in a thread of the test's process."""

    application: EventsApplication
    server: Server
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def listeners(self) -> int:
        return len(self.application.hub)


@contextmanager
def events_thread(*, port: int = 0, timing: Timing = QUICK) -> Iterator[EventsThread]:
    application = EventsApplication(timing=timing)
    server = Server(application, request_within_s=1)
    with listening_socket(host="127.0.0.1", port=port) as listening:
        loops: list[asyncio.AbstractEventLoop] = []

        async def serve() -> None:
            loops.append(asyncio.get_running_loop())
            await server.serve(sockets=[listening])

        thread = threading.Thread(target=lambda: asyncio.run(serve()), name="events server", daemon=True)
        thread.start()
        running = EventsThread(application, server, listening.getsockname()[1])
        try:
            until(lambda: _status(f"{running.url}/readyz") == httpx.codes.OK, what="events are not served")
            yield running
        finally:
            server.should_exit = True
            thread.join(15)
            assert not thread.is_alive(), _where(thread, loops[0])


def _where(thread: threading.Thread, loop: asyncio.AbstractEventLoop) -> str:
    """What a server that does not end is at."""
    lines = traceback.format_stack(sys._current_frames()[thread.ident or 0])
    lines += [
        f"{task.get_name()}: {task.get_coro()} {task.get_stack()}\n" for task in asyncio.all_tasks(loop)
    ]
    return "".join(lines)


def _status(url: str) -> int:
    try:
        return httpx.get(url, timeout=5, trust_env=False, verify=_NO_TLS).status_code
    except httpx.HTTPError:
        return 0


class EventsProcess:
    """One `manage.py run_events`, whose address may be kept for its successor."""

    def __init__(self, *, env: Mapping[str, str], log: Path, port: int) -> None:
        self.port = port
        self._log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "manage.py", "run_events", "--port", str(port)],
                cwd=ROOT,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def is_ready(self) -> bool:
        assert self.process.poll() is None, self.log[-3000:]
        return _status(f"{self.url}/readyz") == httpx.codes.OK

    def until_ready(self) -> EventsProcess:
        until(self.is_ready, what="the events' process is not ready", within_s=60)
        return self

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)


Listen = Callable[..., Stream]


@contextmanager
def listeners(headers: Callable[[str], Mapping[str, str]]) -> Iterator[Listen]:
    """A function that opens streams: `listen(url, token, query="", last_id=None)`; all are closed at the end."""
    opened: list[Stream] = []

    def listen(url: str, token: str, *, query: str = "", last_id: str | None = None) -> Stream:
        sent = dict(headers(token))
        if last_id is not None:
            sent["Last-Event-ID"] = last_id
        stream = Stream(url=f"{url}/v1/events{query}", headers=sent).start()
        opened.append(stream)
        return stream

    try:
        yield listen
    finally:
        for stream in opened:
            stream.close()


def central_environment(*, redis_url: str, database_url: str, issuers: str, **more: str) -> dict[str, str]:
    """The environment of a process of central beside these, with the secrets of the tests' settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SGM_", "DJANGO_"))}
    return {
        **kept,
        "PYTHONUNBUFFERED": "1",
        "DJANGO_SETTINGS_MODULE": "smartgrid.settings",
        "SGM_SECRET_KEY": settings.SECRET_KEY,
        "SGM_DATABASE_URL": database_url,
        "SGM_REDIS_URL": redis_url,
        "SGM_ROOT_TOKENS": ",".join(settings.SGM_ROOT_TOKENS),
        "SGM_TOKEN_HASH_KEY": settings.SGM_TOKEN_HASH_KEY,
        "SGM_TOKEN_ENCRYPTION_KEYS": ",".join(settings.SGM_TOKEN_ENCRYPTION_KEYS),
        "SGM_ISSUERS": issuers,
        # Of a browser that the tests log in by itself nobody asks for a code.
        "SGM_CONSOLE_SECOND_FACTOR": "off",
        **more,
    }


@contextmanager
def web_process(*, env: Mapping[str, str], port: int, log: Path) -> Iterator[str]:
    """The API as the demo serves it; its address."""
    argv = [
        *program("granian"),
        *("--interface", "wsgi", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--blocking-threads", "20", "--workers-kill-timeout", "3", "smartgrid.wsgi:application"),
    ]
    with log.open("ab") as output:
        process = subprocess.Popen(
            argv, cwd=ROOT, env=dict(env), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
    url = f"http://127.0.0.1:{port}"
    try:
        until(lambda: _status(f"{url}/readyz") == httpx.codes.OK, what="web is not ready", within_s=60)
        yield url
    except TimeoutError as error:
        raise TimeoutError(f"{error}: {log.read_text(errors='replace')[-2000:]}") from None
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
