"""Listeners while something dies, hangs or lies: real processes, a Redis of the test's own, raw sockets."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
import time_machine
from django.conf import settings as central

from sites_app.selectors import token_value
from smartgrid import live
from smartgrid.demo.state import free_port
from smartgrid.events import Event, Kind, events_flush, events_publish
from tests.events.conftest import issuers_of
from tests.events.listening import EventsProcess, EventsThread, Stream, central_environment, events_thread
from tests.events.own_redis import OwnRedis, own_redis
from tests.factories import Story, story_make
from tests.inboxes import database_url
from tests.servers import until
from tests.smartgrid.token_issuer import TokenIssuer

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.services]

# Below what a process may open by default on any machine.
THOUSAND = 1000


@pytest.fixture
def story(transactional_db) -> Story:
    return story_make()


@pytest.fixture
def root() -> str:
    return str(central.SGM_ROOT_TOKENS[0])


@pytest.fixture
def mortal_redis(settings, tmp_path: Path) -> Iterator[OwnRedis]:
    with own_redis(tmp_path / "redis") as running:
        settings.SGM_REDIS_URL = running.url
        settings.SGM_EVENTS_KEPT = 100_000
        live.client.cache_clear()
        yield running
        events_flush(within_s=5)
    live.client().close()
    live.client.cache_clear()


Processes = Callable[..., EventsProcess]


@pytest.fixture
def processes(tmp_path: Path, mortal_redis: OwnRedis, issuer: TokenIssuer) -> Iterator[Processes]:
    """Starts `manage.py run_events`, ready: `processes(port=...)`; SIGKILL for all at the end."""
    started: list[EventsProcess] = []

    def start(*, port: int | None = None, **more: str) -> EventsProcess:
        env = central_environment(
            redis_url=mortal_redis.url,
            database_url=database_url(),
            issuers=json.dumps(issuers_of(issuer)),
            **more,
        )
        log = tmp_path / f"events-{len(started)}.log"
        process = EventsProcess(env=env, log=log, port=port or free_port())
        started.append(process)
        return process.until_ready()

    yield start
    for process in started:
        process.kill()


def happens(story: Story, *numbers: int) -> None:
    for number in numbers:
        events_publish([Event(Kind.NODE, story.site_a.pk, {"n": number})])
        assert events_flush(within_s=10)


def numbers(stream: Stream) -> list[int]:
    return [data["n"] for data in stream.heard("node")]


# --- the process --------------------------------------------------------------------------------------------


def test_listener_of_a_process_that_was_killed_misses_nothing(processes: Processes, story, root, listen):
    first = processes()
    stream = listen(first.url, root)
    stream.has_place()
    happens(story, 1, 2)
    stream.hears(2)
    first.kill()
    stream.ends()
    happens(story, 3)
    second = processes(port=first.port)
    again = listen(second.url, root, last_id=stream.last_id)
    happens(story, 4)
    again.hears(2)
    assert numbers(stream) + numbers(again) == [1, 2, 3, 4]


def test_listener_resumes_at_another_process(processes: Processes, story, root, listen):
    one, other = processes(), processes()
    stream = listen(one.url, root)
    stream.has_place()
    happens(story, 1)
    stream.hears(1)
    again = listen(other.url, root, last_id=stream.last_id)
    happens(story, 2)
    again.hears(1)
    assert (numbers(again), again.heard("reset")) == ([2], [])


def test_streams_end_within_a_second_of_sigterm(processes: Processes, story, root, listen):
    process = processes()
    streams = [listen(process.url, root) for _ in range(20)]
    process.process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    for stream in streams:
        stream.ends(within_s=5)
    assert time.monotonic() - began < 1
    assert process.process.wait(5) in {0, -signal.SIGTERM}
    # Each was ended in good order, not cut.
    assert all("the server stops" in stream.comments for stream in streams)


# --- Redis --------------------------------------------------------------------------------------------------


def test_redis_that_died_and_came_back_empty_is_a_reset(
    processes: Processes, mortal_redis: OwnRedis, story, root, listen
):
    process = processes()
    stream = listen(process.url, root)
    place = stream.has_place()
    happens(story, 1)
    stream.hears(1)
    mortal_redis.kill()
    until(lambda: listen(process.url, root).status == 503, what="streams are opened without Redis")
    # Dropped; whoever publishes is not held up by it.
    began = time.monotonic()
    events_publish([Event(Kind.NODE, story.site_a.pk, {"n": 2})])
    assert time.monotonic() - began < 1
    mortal_redis.start()
    stream.hears(1, "reset")
    assert not stream.ended.is_set()
    happens(story, 3)
    until(lambda: numbers(stream)[-1:] == [3], what="nothing is told after Redis came back")
    late = listen(process.url, root, last_id=place)
    late.hears(1, "reset")


def test_redis_that_hung_costs_nobody_the_stream(
    processes: Processes, mortal_redis: OwnRedis, story, root, listen
):
    process = processes()
    stream = listen(process.url, root)
    stream.has_place()
    mortal_redis.freeze()
    events_publish([Event(Kind.NODE, story.site_a.pk, {"n": 1})])
    # The publisher has given it up: what it sent may be taken in all the same, once Redis goes on.
    events_flush(within_s=10)
    mortal_redis.thaw()
    stream.hears(1, "reset")
    happens(story, 2)
    until(lambda: numbers(stream)[-1:] == [2], what="nothing is told after Redis came back")
    assert not stream.ended.is_set()


def test_redis_that_was_emptied_costs_places_and_not_what_comes(served: EventsThread, story, root, listen):
    stream = listen(served.url, root)
    stream.has_place()
    happens(story, 1)
    stream.hears(1)
    live.client().flushall()
    happens(story, 2)
    until(lambda: numbers(stream)[-1:] == [2], what="nothing is told after Redis was emptied")
    late = listen(served.url, root, last_id=stream.events[0].id)
    late.hears(1, "reset")


def test_ids_that_begin_anew_in_the_past_are_a_reset(served: EventsThread, story, root, listen):
    stream = listen(served.url, root)
    stream.has_place()
    live.client().xadd("sgm:events", {"k": "mark", "s": "", "d": "{}"}, id="99999999999999-0")
    until(lambda: served.application.hub.place[0] == 99999999999999, what="the mark was not read")
    # As behind a Redis that was replaced by one whose clock is right.
    live.client().flushall()
    stream.hears(1, "reset")
    happens(story, 1)
    stream.hears(1, "node")


def test_entry_that_nobody_understands_is_passed_over(served: EventsThread, story, root, listen):
    stream = listen(served.url, root)
    stream.has_place()
    for fields in (
        {"k": "node", "s": str(story.site_a.pk), "d": '{"n":\n1}'},
        {"k": "node", "s": str(story.site_a.pk)},
        {"k": "of a later version", "s": str(story.site_a.pk), "d": "{}"},
        {"k": b"\xff", "s": b"\xff", "d": b"{}"},
        {"x": "y"},
    ):
        live.client().xadd("sgm:events", fields)  # type: ignore[arg-type]
    happens(story, 2)
    stream.hears(1)
    assert numbers(stream) == [2]


# --- clocks -------------------------------------------------------------------------------------------------


def test_stream_outlives_a_clock_that_is_set_back_and_not_its_bearer(
    served: EventsThread, story, root, listen
):
    with time_machine.travel(datetime.now(UTC), tick=True) as clock:
        stream = listen(served.url, root)
        stream.has_place()
        clock.shift(timedelta(hours=-1))
        happens(story, 1)
        stream.hears(1)
        again = listen(served.url, root, last_id=stream.last_id)
        happens(story, 2)
        again.hears(1)
        assert numbers(again) == [2]
        # The bearer is good for an hour and a minute's leeway, of which an hour was given back.
        clock.shift(timedelta(hours=2, minutes=2))
        stream.ends()
        assert "the bearer token has expired" in stream.comments


# --- listeners that behave badly ------------------------------------------------------------------------------


def raw_listener(
    port: int, *, issuer: TokenIssuer, token: str, receive_buffer: int | None = None
) -> socket.socket:
    """A connection whose stream is open."""
    connection = socket.socket()
    if receive_buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.settimeout(30)
    connection.connect(("127.0.0.1", port))
    connection.sendall(
        (
            f"GET /v1/events HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {issuer.token()}\r\n"
            f"X-Management-Token: {token}\r\n\r\n"
        ).encode()
    )
    return connection


def is_open(connection: socket.socket) -> bool:
    return connection.recv(4096).startswith(b"HTTP/1.1 200 OK")


def ends(connection: socket.socket) -> bool:
    """Read what is left; whether that comes to an end."""
    try:
        while connection.recv(1 << 20):
            pass
    except ConnectionError:
        pass
    return True


def test_listener_that_does_not_read_is_let_go_and_others_are_not(
    served: EventsThread, issuer, story, root, listen
):
    good = listen(served.url, root)
    good.has_place()
    with raw_listener(served.port, issuer=issuer, token=root, receive_buffer=4096) as slow:
        assert is_open(slow)
        assert served.listeners == 2
        bulk = "x" * 50_000
        for first in range(0, 200, 20):
            events_publish(
                [
                    Event(Kind.NODE, story.site_a.pk, {"n": number, "bulk": bulk})
                    for number in range(first, first + 20)
                ]
            )
            assert events_flush(within_s=10)
            good.hears(first + 20)
        until(lambda: served.listeners == 1, what="the slow listener is still held")
        assert numbers(good) == list(range(200))
        # Its connection is gone, not merely forgotten.
        slow.settimeout(10)
        assert ends(slow)


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"GET /v1/events HTTP/1.1\r\nHost: 127.0.0.1\r\n",
        b"GET /v1/events HTTP/1.1\r\nX: " + b"x" * 200_000,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /v1/events\r\n\r\n",
        b"\x00" * 100,
    ],
    ids=["silence", "half a request", "endless header", "TLS", "HTTP/0.9", "zeros"],
)
def test_connection_that_asks_nothing_sensible_is_ended(served: EventsThread, said):
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        connection.settimeout(10)
        try:
            connection.sendall(said)
            while connection.recv(4096):
                pass
        except ConnectionError:
            pass
    assert httpx.get(f"{served.url}/healthz", trust_env=False).status_code == 200


@pytest.mark.parametrize(
    "header",
    [
        "Last-Event-ID: \xff\xfe",
        "Last-Event-ID: " + "1" * 5000,
        "Host: \xff",
        "Host: a b c",
        "X-Request-ID: \xff",
        "Authorization: Bearer \xff",
        "X-Management-Token: \xff",
        "Content-Length: 99999999999",
        "Expect: 100-continue",
        "Upgrade: websocket\r\nConnection: Upgrade",
    ],
)
def test_strange_header_is_never_our_error(served: EventsThread, issuer, root, header):
    lines = [
        "GET /v1/events HTTP/1.1",
        *(["Host: 127.0.0.1"] if not header.startswith("Host") else []),
        *([f"Authorization: Bearer {issuer.token()}"] if not header.startswith("Auth") else []),
        *([f"X-Management-Token: {root}"] if not header.startswith("X-Man") else []),
        header,
    ]
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        connection.settimeout(10)
        connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
        answer = connection.recv(4096)
        if answer.startswith(b"HTTP/1.1 100"):
            answer = connection.recv(4096)
    assert answer[:13] in {b"HTTP/1.1 200 ", b"HTTP/1.1 400 ", b"HTTP/1.1 401 "}, answer[:200]


# --- many ---------------------------------------------------------------------------------------------------


def resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.long
def test_thousand_listeners_are_told_and_leave_nothing_behind(processes: Processes, issuer, story, root):
    process = processes(SGM_EVENTS_LISTENERS_PER_TOKEN="5000")
    pid = process.process.pid
    # Threads and connections that stay are there.
    with ExitStack() as opened:
        some = [
            opened.enter_context(raw_listener(process.port, issuer=issuer, token=root)) for _ in range(50)
        ]
        assert all(is_open(connection) for connection in some)
        with_some = open_files(pid)
    until(lambda: open_files(pid) <= with_some - 40, what="connections of those who went are held")
    before_mib, before_files = resident_mib(pid), open_files(pid)
    token = token_value(story.token_a)
    with ExitStack() as opened:
        began = time.monotonic()
        connections: list[socket.socket] = []
        # No more at once than may wait to be let in.
        for _ in range(THOUSAND // 100):
            coming = [
                opened.enter_context(raw_listener(process.port, issuer=issuer, token=token))
                for _ in range(100)
            ]
            assert all(is_open(connection) for connection in coming)
            connections += coming
        opening_s = time.monotonic() - began
        with raw_listener(process.port, issuer=issuer, token=token):
            held_mib = resident_mib(pid) - before_mib
        cpu_before, began = cpu_s(pid), time.monotonic()
        happens(story, 1)
        for connection in connections:
            heard = b""
            while b'{"n":1}' not in heard:
                piece = connection.recv(4096)
                assert piece
                heard += piece
        told_s, told_cpu_s = time.monotonic() - began, cpu_s(pid) - cpu_before
    # Threads at the door that first had something to do meanwhile have files of their database.
    until(lambda: open_files(pid) <= before_files + 50, what="connections of those who went are held")
    print(  # noqa: T201 - figures for who reads the log of a long run
        f"\n{THOUSAND} listeners: opened in {opening_s:.1f} s, {held_mib:.0f} MiB"
        f" ({held_mib * 1024 / THOUSAND:.0f} KiB each), one event to all in {told_s:.2f} s, {told_cpu_s:.2f} s of CPU"
    )
    assert held_mib * 1024 / THOUSAND < 100


def test_process_ends_its_start_where_its_port_is_taken(mortal_redis: OwnRedis, issuer, tmp_path: Path, db):
    with events_thread() as running:
        env = central_environment(
            redis_url=mortal_redis.url, database_url=database_url(), issuers=json.dumps(issuers_of(issuer))
        )
        process = EventsProcess(env=env, log=tmp_path / "log", port=running.port)
        assert process.process.wait(30) == 1
        assert f"cannot listen at 127.0.0.1:{running.port}" in process.log
