"""Central behind HAProxy with the product's own file: what it lets through, what it cuts off, who waits for whom."""

from __future__ import annotations

import http.client
import re
import select
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edge.wire.messages import Presence
from sites_app.presence import presence_note
from smartgrid import live
from tests.events.listening import EventsProcess, Stream
from tests.servers import PROXY_CONFIG, Proxy, proxy_program, until
from tests.system.behind_proxy import CATEGORY, Answer, Central, read_answer, running_central

pytestmark = pytest.mark.system

API_BODY, CONSOLE_BODY, HEAD = 1024 * 1024, 4 * 1024 * 1024, 64 * 1024
# As short as a test has patience, and long enough for a busy machine.
WITHIN_S = 2
JSON = "Content-Type: application/json"
CHUNKED = b"2\r\n{}\r\n0\r\n\r\n"
SHAPE = {"detail", "code", "errors", "request_id"}


@pytest.fixture(scope="module")
def central(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Central]:
    with running_central(tmp_path_factory.mktemp("central")) as running:
        yield running


@pytest.fixture(scope="module")
def proxy(central: Central) -> Iterator[Proxy]:
    with central.proxy(
        SGM_PROXY_REQUEST_WITHIN=f"{WITHIN_S}s", SGM_PROXY_QUEUE_WITHIN=f"{WITHIN_S}s"
    ) as running:
        yield running


@pytest.fixture
def node(settings, central: Central) -> Iterator[str]:
    """The node, just heard of: what is asked of it is sent, and nobody answers."""
    settings.SGM_REDIS_URL = central.redis_url
    live.client.cache_clear()
    session = uuid4().hex
    born = Presence(online=True, session=session, boot="boot-1", fresh="fresh-1")
    presence_note(central.node_id, born, retained=False, at=time.time())
    yield central.node_id
    gone = Presence(online=False, session=session, boot="boot-1")
    presence_note(central.node_id, gone, retained=False, at=time.time() - 60)
    live.client().close()
    live.client.cache_clear()


def setpoint(value: float) -> dict[str, object]:
    return {"category": CATEGORY, "value": value}


def error_of(answer: Answer) -> str:
    """The code of an error in the API's shape, whose id stands in its header as well."""
    assert answer.body.keys() == SHAPE
    assert answer.body["request_id"] == answer.headers["x-request-id"]
    return str(answer.body["code"])


def connected(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=30)


def sent(proxy: Proxy, request: bytes) -> Answer:
    """The answer to these bytes, all of which need not be taken."""
    with connected(proxy) as connection:
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(request)
        return read_answer(connection)


def trickled(proxy: Proxy, beginning: bytes) -> tuple[Answer, float]:
    """What is answered to one that goes on with ten bytes a second, and after how many seconds."""
    with connected(proxy) as connection:
        began = time.monotonic()
        connection.sendall(beginning)
        while not select.select([connection], [], [], 0.1)[0]:
            assert time.monotonic() - began < 20
            connection.sendall(b"x")
        return read_answer(connection), time.monotonic() - began


def asked(proxy: Proxy, lane: str) -> int:
    return int(proxy.figures(lane, "BACKEND")["stot"])


def is_up(proxy: Proxy, name: str) -> bool:
    return proxy.figures("reads", name)["status"] == "UP"


def test_file_holds_with_all_that_the_environment_may_name(tmp_path: Path) -> None:
    environment = {
        "SGM_PROXY_BIND": "127.0.0.1:1",
        "SGM_PROXY_CERTIFICATE": str(certificate_make(tmp_path / "proxy.pem")),
        "SGM_PROXY_SOCKET": str(tmp_path / "socket"),
        "SGM_EVENTS_2": "127.0.0.1:2",
        **{f"SGM_WEB_{number}": f"127.0.0.1:{number}" for number in range(1, 9)},
    }
    argv = [proxy_program(), "-c", "-V", "-f", str(PROXY_CONFIG)]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0
    # No warning either.
    assert (done.stdout.strip(), done.stderr) == ("Configuration file is valid", "")


# --- what is too slow, too large or in doubt --------------------------------------------------------------------


def test_head_that_trickles_is_cut_off_in_time(proxy: Proxy) -> None:
    answer, took_s = trickled(proxy, b"GET /v1/ping HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ")
    assert answer.status == 408
    assert WITHIN_S - 0.5 < took_s < WITHIN_S + 3


def test_body_that_trickles_is_cut_off_in_time_and_web_never_hears_of_it(
    central: Central, proxy: Proxy
) -> None:
    before = asked(proxy, "control")
    answer, took_s = trickled(proxy, central.head(f"PUT {central.curtail}", JSON, "Content-Length: 60000"))
    assert answer.status == 408
    assert error_of(answer) == "request_timeout"
    assert WITHIN_S - 0.5 < took_s < WITHIN_S + 3
    assert asked(proxy, "control") == before


def test_large_bodies_that_trickle_hold_nobody_up_but_their_like(central: Central, proxy: Proxy) -> None:
    """Beyond 64 KiB a body goes on to web as it comes: those have places of their own."""
    head = central.head(f"PUT {central.curtail}", JSON, f"Content-Length: {API_BODY}")
    with ExitStack() as stack:
        for _ in range(20):
            connection = stack.enter_context(connected(proxy))
            connection.sendall(head + b"[" * 100_000)
        until(lambda: proxy.figures("uploads", "BACKEND")["qcur"] != "0", what="all places are taken")
        assert central.ask(proxy.port, "GET", "/v1/ping", within_s=5).status == 200
        assert central.ask(proxy.port, "PUT", central.curtail, setpoint(50), within_s=5).status == 200


@pytest.mark.parametrize(
    ("path", "limit"), [("/v1/sites/bulk", API_BODY), ("/oauth/token", API_BODY), ("/admin/x", CONSOLE_BODY)]
)
def test_body_over_the_limit_of_web_is_refused_before_any_of_it_is_sent(
    central: Central, proxy: Proxy, path: str, limit: int
) -> None:
    refused = sent(proxy, central.head(f"POST {path}", JSON, f"Content-Length: {limit + 1}"))
    assert refused.status == 413
    assert error_of(refused) == "payload_too_large"
    # One of just that size is waited for.
    taken = sent(proxy, central.head(f"POST {path}", JSON, f"Content-Length: {limit}"))
    assert error_of(taken) == "request_timeout"


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        (("Content-Length: 2", "Content-Length: 3"), b"{}", 400),
        (("Content-Length: 2", "Transfer-Encoding: chunked"), CHUNKED, 411),
        (("Transfer-Encoding: chunked",), CHUNKED, 411),
        (("Transfer-Encoding: chunked",), b"{}", 400),
        (("Transfer-Encoding: gzip, chunked",), CHUNKED, 422),
        (("Transfer-Encoding : chunked", "Content-Length: 2"), b"{}", 400),
        (("Content-Length: +2",), b"{}", 400),
        (("Content-Length: -1",), b"{}", 400),
    ],
)
def test_body_whose_length_is_in_doubt_is_refused_and_not_passed_on(
    central: Central, proxy: Proxy, headers: tuple[str, ...], body: bytes, status: int
) -> None:
    before = asked(proxy, "control")
    answer = sent(proxy, central.head(f"PUT {central.curtail}", JSON, *headers) + body)
    assert answer.status == status
    assert asked(proxy, "control") == before


@pytest.mark.parametrize(
    ("line", "headers", "statuses"),
    [
        ("GET /v1/ping", ["X: " + "a" * (HEAD + 1)], {431}),
        ("GET /v1/ping", ["X: " + "a" * 1024 * 1024], {400, 431}),
        ("GET /v1/ping?" + "a" * 1024 * 1024, [], {400, 414, 431}),
        ("GET /v1/ping", [f"X-{number}: a" for number in range(150)], {431}),
        ("GET /v1/ping", [f"X-{number}: a" for number in range(1000)], {400, 431}),
    ],
)
def test_head_that_is_too_large_is_refused(
    central: Central, proxy: Proxy, line: str, headers: list[str], statuses: set[int]
) -> None:
    assert sent(proxy, central.head(line, *headers)).status in statuses


def test_head_just_below_the_limit_is_taken(central: Central, proxy: Proxy) -> None:
    room = HEAD - len(central.head("GET /v1/ping")) - 1000
    assert sent(proxy, central.head("GET /v1/ping", "X: " + "a" * room)).status == 200


# --- lanes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "lane"),
    [
        ("GET", "/v1/ping", "reads"),
        ("HEAD", "/v1/ping", "reads"),
        ("GET", "/healthz", "reads"),
        ("GET", "/v1/devices?limit=100", "reads"),
        ("GET", "/v1/devices?offset=100&limit=200", "reads"),
        ("GET", "/v1/sites/SITE", "reads"),
        ("GET", "/v1/sites/SITE/settings", "reads"),
        ("GET", "/v1/sites/SITE/logs", "reads"),
        ("GET", "/v1/logs", "reads"),
        ("GET", "/v1/devices", "bulk"),
        ("GET", "/v1/devices?limit=201", "bulk"),
        ("GET", "/v1/devices?limit=", "bulk"),
        ("GET", "/v1/logs?limit=1000", "bulk"),
        ("GET", "/v1/sites/SITE/telemetry", "bulk"),
        ("GET", "/v1/no-such-path", "bulk"),
        ("GET", "/v1/devices/SITE/explain", "control"),
        ("PUT", "/v1/sites/SITE/curtail-category", "control"),
        ("POST", "/v1/sites/SITE/release", "control"),
        ("POST", "/v1/sites?limit=100", "control"),
        ("DELETE", "/v1/auth-tokens/SITE", "control"),
        ("OPTIONS", "/v1/ping", "control"),
        ("GET", "/admin/login/", "others"),
        ("GET", "/admin/x?limit=100", "others"),
        ("GET", "/enroll/authority", "others"),
        ("GET", "/", "others"),
    ],
)
def test_each_request_goes_into_its_lane(
    central: Central, proxy: Proxy, method: str, path: str, lane: str
) -> None:
    lanes = ["reads", "control", "bulk", "others", "uploads", "events"]
    before = {each: asked(proxy, each) for each in lanes}
    answer = central.ask(proxy.port, method, path.replace("SITE", central.site_id))
    assert answer.status not in {502, 503, 504}
    assert [each for each in lanes if asked(proxy, each) != before[each]] == [lane]


def test_curtailment_is_answered_while_every_place_for_reading_is_taken_and_readers_queue(
    central: Central, proxy: Proxy
) -> None:
    path = f"/v1/sites/{central.site_id}/schedules?limit=10"
    with ExitStack() as stack:
        lock = stack.enter_context(central.locked("schedules_app_schedule"))
        readers = [
            stack.enter_context(central.begin(proxy.port, "GET", path)) for _ in range(len(central.web) + 1)
        ]
        until(lambda: central.waiting_for_locks() == len(central.web), what="readers are not held")
        # What waits longer than it may is told when to come again, and certainly was not sent.
        answer = central.ask(proxy.port, "GET", "/v1/ping")
        assert answer.status == 503
        assert error_of(answer) == "unavailable"
        assert answer.headers["retry-after"] == "1"
        began = time.monotonic()
        answer = central.ask(proxy.port, "PUT", central.curtail, setpoint(50), within_s=10)
        assert answer.status == 200
        assert answer.body["result"]["not_updated"].keys() == {"PV_1"}
        assert time.monotonic() - began < 3
        lock.rollback()
        statuses = sorted(read_answer(reader).status for reader in readers)
        assert statuses == [200] * len(central.web) + [503]
    assert central.ask(proxy.port, "GET", "/v1/ping").status == 200


def test_readers_that_do_not_read_hold_no_place(central: Central, proxy: Proxy) -> None:
    wanted = 200
    sites = [{"site_tag": f"slow_{number}", "name": "n" * 100} for number in range(wanted)]
    made = central.ask(proxy.port, "POST", "/v1/sites/bulk", sites)
    assert made.status == 200, made.content
    path = f"/v1/sites?limit={wanted}"
    # More than fits into what a buffer of HAProxy's usual size and the kernel's for this reader take.
    assert len(central.ask(proxy.port, "GET", path).content) > 48 * 1024
    with ExitStack() as stack:
        readers = [
            stack.enter_context(central.begin(proxy.port, "GET", path, buffer=2048))
            for _ in range(4 * len(central.web))
        ]
        assert central.ask(proxy.port, "GET", "/v1/ping", within_s=10).status == 200
        assert {read_answer(reader).status for reader in readers} == {200}


# --- what dies --------------------------------------------------------------------------------------------------


def test_killed_process_is_passed_over_and_its_put_is_not_sent_again(
    central: Central, proxy: Proxy, node: str
) -> None:
    assert node == central.node_id
    before = central.count("SELECT count(*) FROM control_app_controlcommand")
    with central.begin(proxy.port, "PUT", central.curtail, setpoint(40)) as put:
        until(
            lambda: central.count("SELECT count(*) FROM control_app_controlcommand") == before + 1,
            what="the command is not recorded",
        )
        names = [f"web{number}" for number in range(1, len(central.web) + 1)]
        [at] = [number for number, name in enumerate(names) if proxy.figures("control", name)["scur"] == "1"]
        central.web[at].kill()
        try:
            answer = read_answer(put)
            assert answer.status == 502
            assert error_of(answer) == "unanswered"
            assert {central.ask(proxy.port, "GET", "/v1/ping").status for _ in range(10)} == {200}
            assert {
                central.ask(proxy.port, "PUT", central.curtail, setpoint(value)).status for value in (-1, -2)
            } == {400}
            until(lambda: not is_up(proxy, names[at]), what="the dead process counts as up")
            assert central.count("SELECT count(*) FROM control_app_controlcommand") == before + 1
        finally:
            central.web[at].start()
    until(lambda: is_up(proxy, names[at]), what="the process is not taken back", within_s=60)


def test_process_that_is_stopped_in_good_order_ends_what_is_under_way(
    central: Central, proxy: Proxy, node: str
) -> None:
    assert node == central.node_id
    before = central.count("SELECT count(*) FROM control_app_controlcommand")
    with central.begin(proxy.port, "PUT", central.curtail, setpoint(40)) as put:
        until(
            lambda: central.count("SELECT count(*) FROM control_app_controlcommand") == before + 1,
            what="the command is not recorded",
        )
        names = [f"web{number}" for number in range(1, len(central.web) + 1)]
        [at] = [number for number, name in enumerate(names) if proxy.figures("control", name)["scur"] == "1"]
        central.web[at].stop()
        try:
            answer = read_answer(put)
            # No worker took it up: web says so itself, at its deadline.
            assert error_of(answer) == "dispatch_unavailable"
            central.web[at].until_stopped()
        finally:
            central.web[at].start()
    until(lambda: is_up(proxy, names[at]), what="the process is not taken back", within_s=60)


def test_reload_cuts_nothing_off(central: Central, proxy: Proxy, node: str) -> None:
    assert node == central.node_id
    before = central.count("SELECT count(*) FROM control_app_controlcommand")
    with central.begin(proxy.port, "PUT", central.curtail, setpoint(40)) as put:
        until(
            lambda: central.count("SELECT count(*) FROM control_app_controlcommand") == before + 1,
            what="the command is not recorded",
        )
        worker = pid(proxy)
        proxy.process.send_signal(signal.SIGUSR2)
        until(lambda: pid(proxy) not in {"", worker}, what="nobody has taken over")
        assert central.ask(proxy.port, "GET", "/v1/ping").status == 200
        assert error_of(read_answer(put)) == "dispatch_unavailable"


def pid(proxy: Proxy) -> str:
    """The process that answers at its socket; empty while that changes hands."""
    with suppress(OSError):
        found = re.search(r"^Pid: (\d+)$", proxy.told("show info"), re.MULTILINE)
        return found[1] if found else ""
    return ""


# --- events -----------------------------------------------------------------------------------------------------


def test_events_pass_through_at_once_and_are_resumed_after_their_process_died(
    central: Central, proxy: Proxy
) -> None:
    log = central.directory / "events.log"
    events = EventsProcess(env=central.env, log=log, port=central.events_port)
    try:
        events.until_ready()
        until(lambda: proxy.figures("events", "events1")["status"] == "UP", what="events are not up")
        url = f"{proxy.url}/v1/events?types=control_log"
        first = Stream(url=url, headers=central.credentials).start()
        try:
            assert first.status == 200
            place = first.has_place()
            assert central.ask(proxy.port, "PUT", central.curtail, setpoint(61)).status == 200
            [told] = first.hears(1, within_s=3)
            assert told["value"] == 61
            place = first.last_id or place
            events.kill()
            first.ends(within_s=5)
        finally:
            first.close()
        answer = central.ask(proxy.port, "GET", "/v1/events")
        assert error_of(answer) == "unavailable"
        assert answer.headers["retry-after"] == "1"
        assert central.ask(proxy.port, "PUT", central.curtail, setpoint(62)).status == 200
        events = EventsProcess(env=central.env, log=log, port=central.events_port).until_ready()
        until(lambda: proxy.figures("events", "events1")["status"] == "UP", what="events are not up")
        second = Stream(url=url, headers={**central.credentials, "Last-Event-ID": place}).start()
        try:
            [told] = second.hears(1)
            assert told["value"] == 62
        finally:
            second.close()
    finally:
        events.kill()


# --- who asks, and how ------------------------------------------------------------------------------------------


def test_forged_address_makes_nobody_somebody_else(central: Central, proxy: Proxy) -> None:
    """Each process counts for itself: beyond what all of them let through, one of them refuses."""
    most = 120 * len(central.web) + 1
    for number in range(most):
        forged = f"198.51.{number // 250}.{number % 250}"
        headers = {"X-Forwarded-For": forged, "Forwarded": f"for={forged}"}
        answer = central.ask(proxy.port, "POST", "/enroll/challenge", headers=headers)
        if answer.status == http.client.TOO_MANY_REQUESTS:
            return
    pytest.fail(f"none of {most} was refused")


@pytest.mark.parametrize("offered", ["sane-id.1:2_3", "b c", "x" * 65, '"}', None])
def test_each_answer_has_one_id_which_is_the_clients_if_it_is_sane(
    central: Central, proxy: Proxy, offered: str | None
) -> None:
    headers = {} if offered is None else {"X-Request-ID": offered}
    of_web = central.ask(proxy.port, "GET", "/v1/no-such-path", headers=headers)
    too_large = {**headers, "Content-Length": str(API_BODY + 1)}
    of_proxy = central.ask(proxy.port, "PUT", central.curtail, headers=too_large)
    assert error_of(of_web) == "not_found"
    assert error_of(of_proxy) == "payload_too_large"
    for answer in (of_web, of_proxy):
        if offered == "sane-id.1:2_3":
            assert answer.headers["x-request-id"] == offered
        else:
            assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])


def test_credentials_under_another_spelling_do_not_arrive(central: Central, proxy: Proxy) -> None:
    token = central.credentials["X-Management-Token"]
    head = f"GET /v1/ping HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: {central.credentials['Authorization']}\r\n"
    assert sent(proxy, f"{head}X-Management-Token: {token}\r\n\r\n".encode()).status == 200
    assert sent(proxy, f"{head}X_Management_Token: {token}\r\n\r\n".encode()).status == 401


def test_with_a_certificate_clients_come_in_by_tls_and_web_knows(
    central: Central, proxy: Proxy, tmp_path: Path
) -> None:
    """Whatever clients say of it themselves."""
    path = "GET /v1/sites?limit=1&offset=1"
    assert scheme_of_pages(proxy, central.head(path, "X-Forwarded-Proto: https"), None) == "http"
    certificate = certificate_make(tmp_path / "proxy.pem")
    context = ssl.create_default_context(cafile=str(certificate))
    context.set_alpn_protocols(["h2", "http/1.1"])
    with central.proxy(SGM_PROXY_CERTIFICATE=str(certificate)) as with_tls:
        page = central.head(path, "X-Forwarded-Proto: http")
        assert scheme_of_pages(with_tls, page, context) == "https"
        # Nobody who forgets the `s` sends credentials twice.
        with connected(with_tls) as plain:
            plain.sendall(page)
            assert plain.recv(1) == b""


def scheme_of_pages(proxy: Proxy, page: bytes, context: ssl.SSLContext | None) -> str:
    """The scheme of the addresses that web gives out."""
    with ExitStack() as stack:
        connection = stack.enter_context(connected(proxy))
        if context is not None:
            connection = stack.enter_context(context.wrap_socket(connection, server_hostname="localhost"))
        connection.sendall(page)
        answer = read_answer(connection)
    assert answer.status == 200
    found = re.search(r"<(https?)://", answer.headers["link"])
    assert found, answer.headers
    return found[1]


def certificate_make(path: Path) -> Path:
    """A PEM file with a key and a certificate of its own making for `localhost`."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(pem + made.public_bytes(serialization.Encoding.PEM))
    return path
