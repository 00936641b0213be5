"""Devices behind OPC XML-DA servers: what servers do that no other device does, and what they must not be able to."""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from lxml import etree

from edge.drivers.errors import DeviceRefused, DeviceUnreachable, ReadingInvalid
from edge.drivers.xml_da import MAX_ANSWER, XmlDaDriver, XmlDaSession
from edge.drivers.xml_da_messages import XML_DA, Address
from edge.profiles.loader import load_all
from edge.profiles.model import Check, Identity, Profile
from edge.profiles.points import Confidence, Item, XsdType
from edge.simulators.device import Fault
from edge.simulators.xml_da import DA, ENVELOPE, INSTANCE, SCHEMA, SimulatedXmlDa
from tests.drivers.benches import NAMEPLATE_KW, SharedClock
from tests.drivers.test_xml_da_messages import SCHEMA as SPECIFICATION, message_in

PROFILES = load_all()
TURBINE = PROFILES["xml_da_wind_turbine"]
assert TURBINE.limit is not None
LIMIT = TURBINE.limit


@pytest.fixture
def clock() -> SharedClock:
    return SharedClock()


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def at(
    stack: AsyncExitStack,
    clock: SharedClock,
    *,
    profile: Profile = TURBINE,
    timeout_s: float = 2.0,
    device: dict[str, Any] | None = None,
    session: dict[str, Any] | None = None,
) -> tuple[SimulatedXmlDa, XmlDaSession, XmlDaDriver]:
    """A server, a session to it and a driver of the device behind it."""
    server = SimulatedXmlDa(profile=profile, nameplate_kw=NAMEPLATE_KW, clock=clock, **(device or {}))
    await server.start()
    stack.push_async_callback(server.stop)
    opened = session_to(server.url, clock, timeout_s=timeout_s, **(session or {}))
    stack.push_async_callback(opened.aclose)
    driver = XmlDaDriver(session=opened, profile=profile, unit=1, nameplate_kw=NAMEPLATE_KW)
    await opened.connect()
    return server, opened, driver


def session_to(url: str, clock: SharedClock, *, timeout_s: float = 2.0, **login: str) -> XmlDaSession:
    return XmlDaSession(url=url, timeout_s=timeout_s, min_gap_s=0, clock=clock, sleep=clock.sleep, **login)


def assert_keeps_to_the_specification(server: SimulatedXmlDa) -> set[str]:
    """Every request and every answer so far; the operations that were asked for."""
    operations = set()
    for asked, answered in server.exchanges:
        request, answer = message_in(asked), message_in(answered)
        SPECIFICATION.assertValid(request)
        if answer.tag != f"{{{ENVELOPE}}}Fault":
            SPECIFICATION.assertValid(answer)
        operations.add(str(request.tag).removeprefix(f"{{{XML_DA}}}"))
    return operations


# --- the eight operations


async def test_all_that_is_said_both_ways_keeps_to_the_specification(stack, clock):
    server, session, driver = await at(stack, clock, profile=subscribing(TURBINE))

    await session.get_status()
    await driver.poll()
    await driver.poll()
    await driver.write(37)
    await driver.read_setpoint()
    await session.browse(Address("", ""))
    await session.get_properties([Address("", "Park.ActivePower"), Address("", "nothing")])
    await session.cancel("subscription-1")

    assert assert_keeps_to_the_specification(server) == {
        "GetStatus", "Read", "Write", "Subscribe", "SubscriptionPolledRefresh", "SubscriptionCancel", "Browse",
        "GetProperties",
    }  # fmt: skip


async def test_a_server_says_who_it_is_and_how_it_is(stack, clock):
    server, session, _ = await at(stack, clock)
    server.server_state = "suspended"

    status = await session.get_status()

    assert (status.reply.state, status.vendor, status.version) == ("suspended", "Any", "1.0")


async def test_the_address_space_is_browsed_in_pieces(stack, clock):
    _, session, _ = await at(stack, clock)

    first = await session.browse(Address("", ""), at_most=4)
    rest = await session.browse(Address("", ""), continuation=first.continuation, at_most=4)

    assert len(first.elements) == 4
    names = [element.address.name for element in (*first.elements, *rest.elements)]
    assert sorted(names) == sorted(point.item for point in TURBINE.points.values() if isinstance(point, Item))
    assert rest.continuation == ""


async def test_items_below_a_path_are_found_there_and_nowhere_else(stack, clock):
    points = {
        name: msgspec.structs.replace(point, item_path="Park 7/Turbine & co")
        for name, point in TURBINE.points.items()
    }
    server, session, driver = await at(stack, clock, profile=msgspec.structs.replace(TURBINE, points=points))

    await driver.write(37)

    assert await driver.read_setpoint() == pytest.approx(37)
    (branch,) = (await session.browse(Address("", ""))).elements
    assert (branch.address.path, branch.has_children, branch.is_item) == ("Park 7/Turbine & co", True, False)
    with pytest.raises(DeviceRefused, match="E_UNKNOWNITEMPATH"):
        await session.browse(Address("Park 8", ""))
    assert_keeps_to_the_specification(server)


async def test_properties_tell_what_an_item_is(stack, clock):
    _, session, _ = await at(stack, clock)

    (known, unknown) = await session.get_properties([Address("", "Park.PowerSetpoint"), Address("", "none")])

    assert known["accessRights"] == "readWritable"
    assert known["engineeringUnits"] == "kW"
    assert unknown == {}


# --- setpoints


async def test_a_park_is_told_kilowatts(stack, clock):
    server, _, driver = await at(stack, clock)

    await driver.write(37)

    assert server.get("setpoint") == pytest.approx(0.37 * NAMEPLATE_KW)
    assert await driver.read_setpoint() == pytest.approx(37)


async def test_a_setpoint_below_the_makers_least_is_a_stop(stack, clock):
    limit = msgspec.structs.replace(LIMIT, least=12.0)
    server, _, driver = await at(stack, clock, profile=msgspec.structs.replace(TURBINE, limit=limit))

    await driver.write(10)

    assert server.get("setpoint") == 0
    # It does what was asked for as far as it can, and that is no mismatch.
    assert await driver.read_setpoint() == 10


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("E_READONLY", "cannot be written"),
        ("E_RANGE", "out of range"),
        ("E_BADTYPE", "another type"),
        ("E_ACCESS_DENIED", "does not allow"),
        ("E_FAIL", "failed"),
    ],
)
async def test_a_refused_write_gives_the_servers_words_and_code(stack, clock, code, words):
    server, session, driver = await at(stack, clock)
    server.codes["setpoint"] = code

    with pytest.raises(DeviceRefused, match=rf"refused to write Park\.PowerSetpoint: .*{words}.* \({code}\)"):
        await driver.write(37)
    assert session.connected


async def test_a_write_that_the_server_could_not_deliver_is_tried_again(stack, clock):
    server, session, driver = await at(stack, clock)
    server.codes["setpoint"] = "E_TIMEDOUT"

    with pytest.raises(DeviceUnreachable, match="E_TIMEDOUT"):
        await driver.write(37)
    # The server answers, and those beside this one may be well.
    assert session.connected


async def test_a_value_the_server_clamped_shows_in_what_is_read_back(stack, clock):
    server, _, driver = await at(stack, clock)
    server.clamps = True
    server.bounds["setpoint"] = (0.0, 30.0)

    await driver.write(80)

    assert await driver.read_setpoint() == pytest.approx(50)


async def test_a_clamped_value_that_cannot_be_read_back_is_a_refusal(stack, clock):
    limit = msgspec.structs.replace(LIMIT, readback=None)
    server, _, driver = await at(stack, clock, profile=msgspec.structs.replace(TURBINE, limit=limit))
    server.clamps = True
    server.bounds["setpoint"] = (0.0, 30.0)

    with pytest.raises(DeviceRefused, match=r"took 30\.0 in place of 48"):
        await driver.write(80)


async def test_a_setpoint_of_bad_quality_is_no_confirmation(stack, clock):
    server, _, driver = await at(stack, clock)
    await driver.write(37)
    server.qualities["setpoint_in_force"] = "badLastKnownValue"

    with pytest.raises(ReadingInvalid, match="power setpoint in force has quality badLastKnownValue"):
        await driver.read_setpoint()


async def test_a_server_without_the_setpoints_item_is_not_written_blindly(stack, clock):
    server, _, driver = await at(stack, clock)
    server.lack("setpoint")

    with pytest.raises(DeviceRefused, match=r"no such item.*\(E_UNKNOWNITEMNAME\)"):
        await driver.write(37)


async def test_an_integer_item_is_written_whole_numbers(stack, clock):
    body = PROFILES["xml_da_device"]
    points = {
        name: msgspec.structs.replace(point, type=XsdType.UNSIGNED_SHORT) if "limit" in name else point
        for name, point in body.points.items()
    }
    server, _, driver = await at(stack, clock, profile=msgspec.structs.replace(body, points=points))

    await driver.write(36.6)

    assert server.get("limit") == 37
    assert b'<n:Value xsi:type="xsd:unsignedShort">37</n:Value>' in server.exchanges[-1][0]


# --- readings


@pytest.mark.parametrize(
    "quality", ["bad", "badCommFailure", "uncertain", "uncertainLastUsableValue", "nonsense"]
)
async def test_a_reading_that_is_not_good_is_none(stack, clock, quality):
    server, _, driver = await at(stack, clock)
    server.qualities["power"] = quality

    readings = (await driver.poll()).readings

    assert readings["P_kW"] is None
    assert readings["V_Wind_m/s"] is not None


@pytest.mark.parametrize("omitted", ["quality", "names", "handles", "times"])
async def test_a_server_may_leave_out_what_it_need_not_say(stack, clock, omitted):
    server, _, driver = await at(stack, clock)
    server.omits = {omitted}

    await driver.write(37)
    result = await driver.poll()

    assert result.readback == pytest.approx(37)
    assert None not in result.readings.values()


@pytest.mark.parametrize(
    "prefixes",
    [
        {"SOAP-ENV": ENVELOPE, "ns1": DA, "xsd": SCHEMA, "xsi": INSTANCE},
        {"soap": ENVELOPE, None: DA, "s": SCHEMA, "i": INSTANCE},
        # The most hostile that is right: our own words for something else.
        {"xsd": ENVELOPE, "soap": DA, "n": SCHEMA, "xsi": INSTANCE},
    ],
    ids=["gsoap", "dotnet", "swapped"],
)
async def test_namespaces_may_have_any_prefix(stack, clock, prefixes):
    server, _, driver = await at(stack, clock)
    server.prefixes = prefixes

    await driver.write(37)
    assert (await driver.poll()).readback == pytest.approx(37)

    server.codes["setpoint"] = "E_RANGE"
    with pytest.raises(DeviceRefused, match="E_RANGE"):
        await driver.write(50)


@pytest.mark.parametrize("clock_off_s", [0.0, -86_400.0 * 400, 7200.0])
async def test_a_value_older_than_it_may_be_is_none_by_the_servers_own_clock(stack, clock, clock_off_s):
    server, _, driver = await at(stack, clock)
    server.clock_off_s = clock_off_s
    server.ages_s = {"power": TURBINE.stale_after_s + 1, "wind_speed": TURBINE.stale_after_s - 1}

    readings = (await driver.poll()).readings

    assert readings["P_kW"] is None
    assert readings["V_Wind_m/s"] is not None


async def test_a_setpoint_may_be_as_old_as_its_last_change(stack, clock):
    server, _, driver = await at(stack, clock)
    await driver.write(37)
    server.ages_s = {"setpoint_in_force": 86_400.0}

    assert (await driver.poll()).readback == pytest.approx(37)


async def test_an_item_that_is_missing_costs_only_its_own_reading(stack, clock):
    server, _, driver = await at(stack, clock)
    server.lack("wind_speed")

    result = await driver.poll()

    assert result.readings["V_Wind_m/s"] is None
    assert result.readings["P_kW"] == pytest.approx(server.machine.power_kw)
    assert result.readback is not None


async def test_an_item_the_server_could_not_get_in_time_costs_only_its_own_reading(stack, clock):
    server, _, driver = await at(stack, clock)
    server.codes["wind_speed"] = "E_TIMEDOUT"

    result = await driver.poll()

    assert result.readings["V_Wind_m/s"] is None
    assert result.readings["P_kW"] is not None


# --- whom we talk to


def recognising(**checks: str) -> Profile:
    points = {
        **TURBINE.points,
        **{
            name: Item(
                name=name,
                source="test",
                confidence=Confidence.UNVERIFIED,
                item=f"$status.{name}",
                type=XsdType.STRING,
            )
            for name in checks
        },
    }
    wanted = tuple(Check(point=name, equals=value) for name, value in checks.items())
    return msgspec.structs.replace(TURBINE, points=points, identity=Identity(checks=wanted))


async def test_a_server_is_recognised_by_what_it_says_of_itself(stack, clock):
    profile = recognising(VendorInfo="ScadaWorks", ProductVersion="4.2")
    server, _, driver = await at(stack, clock, profile=profile)

    await driver.identify()
    server.put("VendorInfo", "Somebody Else")
    with pytest.raises(DeviceRefused, match=r"VendorInfo.* reads 'Somebody Else', expected 'ScadaWorks'"):
        await driver.identify()


@pytest.mark.parametrize(
    ("state", "error"),
    [
        ("failed", DeviceUnreachable),
        ("suspended", DeviceUnreachable),
        ("noConfig", DeviceRefused),
        ("test", DeviceRefused),
    ],
)
async def test_a_server_that_does_not_run_is_neither_read_nor_believed(stack, clock, state, error):
    server, _, driver = await at(stack, clock)
    server.server_state = state

    with pytest.raises(error, match=f"is in state '{state}', not 'running'"):
        await driver.poll()
    with pytest.raises(error, match=state):
        await driver.write(37)


async def test_one_broken_line_of_a_server_does_not_take_the_other_devices_away(stack, clock):
    server, _, driver = await at(stack, clock)
    server.server_state = "commFault"
    server.qualities["wind_speed"] = "badCommFailure"

    await driver.write(37)
    result = await driver.poll()

    assert result.readback == pytest.approx(37)
    assert (result.readings["V_Wind_m/s"], result.readings["P_kW"] is None) == (None, False)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("E_SERVERSTATE", DeviceUnreachable),
        ("E_OUTOFMEMORY", DeviceUnreachable),
        ("Server", DeviceUnreachable),
        ("E_FAIL", DeviceRefused),
        ("Client", DeviceRefused),
    ],
)
async def test_a_fault_says_whether_to_try_again(stack, clock, code, error):
    server, session, driver = await at(stack, clock)
    server.fault_code = code

    with pytest.raises(error, match=rf"refused Read: .*\({code}\)"):
        await driver.poll()
    assert session.connected


async def test_an_answer_for_another_item_is_not_taken(stack, clock):
    server, _, driver = await at(stack, clock)
    await server.set_fault(Fault.WRONG_UNIT)

    with pytest.raises(DeviceUnreachable, match="other items"):
        await driver.poll()
    with pytest.raises(DeviceUnreachable, match="other items"):
        await driver.write(37)


# --- subscription


def subscribing(profile: Profile) -> Profile:
    return msgspec.structs.replace(profile, subscribe=True)


async def test_what_a_server_collects_is_asked_for_in_place_of_everything(stack, clock):
    server, _, driver = await at(stack, clock, profile=subscribing(TURBINE))

    first = await driver.poll()
    server.shown["power"] = 12.5
    said, before = driver.commands_per_poll, server.commands
    second = await driver.poll()

    assert first.readings["P_kW"] == pytest.approx(server.machine.power_kw)
    assert second.readings["P_kW"] == 12.5
    # What did not change is still what it was.
    assert second.readings["V_Wind_m/s"] == first.readings["V_Wind_m/s"]
    assert server.commands - before == said == 2
    assert b"Park.WindSpeed" not in server.exchanges[-2][1]


async def test_a_server_may_name_what_changed_by_items_alone(stack, clock):
    server, _, driver = await at(stack, clock, profile=subscribing(TURBINE))
    server.omits = {"handles"}
    await driver.poll()
    server.shown["power"] = 12.5

    assert (await driver.poll()).readings["P_kW"] == 12.5


async def test_a_subscription_never_stands_for_the_setpoint(stack, clock):
    _, _, driver = await at(stack, clock, profile=subscribing(TURBINE))
    await driver.poll()

    await driver.write(37)

    assert (await driver.poll()).readback == pytest.approx(37)


async def test_a_subscription_that_has_expired_is_made_anew(stack, clock):
    server, _, driver = await at(stack, clock, profile=subscribing(TURBINE))
    await driver.poll()
    clock.advance(61)
    server.shown["power"] = 12.5

    readings = (await driver.poll()).readings

    assert readings["P_kW"] == 12.5
    assert list(server.subscriptions) == ["subscription-2"]


async def test_after_a_restart_of_the_server_nothing_of_before_is_shown(stack, clock):
    server, session, driver = await at(stack, clock, profile=subscribing(TURBINE))
    await driver.poll()
    await server.restart()
    await session.connect()
    server.shown["power"] = 12.5

    assert (await driver.poll()).readings["P_kW"] == 12.5


async def test_a_value_that_turns_bad_is_none_and_not_what_it_was(stack, clock):
    server, _, driver = await at(stack, clock, profile=subscribing(TURBINE))
    await driver.poll()
    server.shown["power"] = None

    assert (await driver.poll()).readings["P_kW"] is None


async def test_a_new_contact_gives_up_the_subscription_of_the_one_before(stack, clock):
    server, _, driver = await at(stack, clock, profile=subscribing(TURBINE))
    for _ in range(3):
        await driver.identify()
        await driver.poll()

    assert len(server.subscriptions) == 1


async def test_a_server_that_cannot_subscribe_an_item_is_read_item_by_item(stack, clock):
    server, _, driver = await at(stack, clock, profile=subscribing(TURBINE))
    server.lack("wind_speed")

    readings = (await driver.poll()).readings

    assert readings["V_Wind_m/s"] is None
    assert readings["P_kW"] is not None


# --- who asks


async def test_a_server_that_wants_a_password_is_told_it(stack, clock):
    login = {"username": "scada", "password": "a: b#ü"}
    server, _, driver = await at(stack, clock, device=login, session=login)

    await driver.write(37)

    assert server.get("setpoint") == pytest.approx(0.37 * NAMEPLATE_KW)


@pytest.mark.parametrize(
    ("login", "todo"),
    [({}, "set a user name"), ({"username": "scada", "password": "wrong"}, "check the device's user name")],
)
async def test_a_wrong_password_is_a_refusal_that_says_what_to_do(stack, clock, login, todo):
    server, _, driver = await at(
        stack, clock, device={"username": "scada", "password": "right"}, session=login
    )

    with pytest.raises(DeviceRefused, match=todo):
        await driver.poll()
    assert server.commands == 0


@asynccontextmanager
async def raw_server(
    serve: Callable[[bytes, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[str]:
    """A server that gets each request's head and body and answers as it likes; its URL."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"content-length: (\d+)", head.lower())
                await reader.readexactly(int(length[1]) if length else 0)
                await serve(head, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/da"
    finally:
        server.close()


def http(
    body: bytes, *, status: str = "200 OK", headers: str = "Content-Type: text/xml", length: int | None = None
) -> bytes:
    return (
        f"HTTP/1.1 {status}\r\nContent-Length: {len(body) if length is None else length}\r\n{headers}\r\n\r\n".encode()
        + body
    )


GOOD = (
    f'<e:Envelope xmlns:e="{ENVELOPE}"><e:Body><GetStatusResponse xmlns="{DA}"><GetStatusResult'
    ' RcvTime="2026-06-01T10:00:00Z" ReplyTime="2026-06-01T10:00:00Z" ServerState="running"/>'
    '<Status StartTime="2026-06-01T10:00:00Z"/></GetStatusResponse></e:Body></e:Envelope>'
).encode()


async def test_digest_authentication_never_sends_the_password(clock):
    heads: list[bytes] = []

    async def serve(head: bytes, writer: asyncio.StreamWriter) -> None:
        heads.append(head)
        given = re.search(rb"authorization: digest (.*)", head, re.IGNORECASE)
        if given is None:
            challenge = 'WWW-Authenticate: Digest realm="da", nonce="n1", qop="auth", algorithm=SHA-256'
            # Unpacked offers of both kinds: the better one is taken.
            writer.write(
                http(b"", status="401 no", headers=f"WWW-Authenticate: Basic realm=x\r\n{challenge}")
            )
            return
        said = dict(re.findall(r'(\w+)="?([^",]*)"?', given[1].decode()))

        def sha(text: str) -> str:
            return hashlib.sha256(text.encode()).hexdigest()

        wanted = sha(
            f"{sha('scada:da:secret')}:n1:{said['nc']}:{said['cnonce']}:auth:{sha('POST:' + said['uri'])}"
        )
        writer.write(http(GOOD) if said["response"] == wanted else http(b"", status="401 no", headers="X: y"))

    async with raw_server(serve) as url:
        session = session_to(url, clock, username="scada", password="secret")
        await session.connect()
        for _ in range(2):
            assert (await session.get_status()).reply.state == "running"
        await session.aclose()
    # Once refused; then it knows how.
    assert len(heads) == 3
    assert not any(b"secret" in head or b"Basic" in head for head in heads)


async def test_a_way_of_asking_that_nobody_knows_is_a_refusal(clock):
    async def serve(head: bytes, writer: asyncio.StreamWriter) -> None:
        challenge = 'WWW-Authenticate: Digest realm="da", nonce="n1", algorithm=ROT13'
        writer.write(http(b"", status="401 no", headers=challenge))

    async with raw_server(serve) as url:
        session = session_to(url, clock, username="scada", password="secret")
        await session.connect()
        with pytest.raises(DeviceRefused, match="in a way that is not known here"):
            await session.get_status()
        await session.aclose()


# --- servers that mean no good, or know no better


async def answers(*parts: bytes) -> Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]:
    async def serve(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.writelines(parts)

    return serve


BOMB = b"<!DOCTYPE b [<!ENTITY a 'ha'><!ENTITY b '&a;&a;'>]><b>&b;</b>"


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (http(BOMB), DeviceUnreachable, "with a DTD"),
        (http(b"<!DOCTYPE b [<!ENTITY f SYSTEM 'file:///etc/hostname'>]><b>&f;</b>"), DeviceUnreachable, "DTD"),
        (http(b"<a>" * 500_000), DeviceUnreachable, "levels"),
        (http(b"<a>" + b"<b/>" * 200_000 + b"</a>"), DeviceUnreachable, "elements"),
        (http(b"\0\1\2"), DeviceUnreachable, "no XML"),
        (http(b""), DeviceUnreachable, "no XML"),
        (http(GOOD[:100]), DeviceUnreachable, "no XML"),
        (http(b"<html>Login</html>", headers="Content-Type: text/html"), DeviceUnreachable, "check the URL"),
        (http(b"{}", headers="Content-Type: application/json"), DeviceUnreachable, "application/json"),
        (http(b"Service down", status="503 busy", headers="X: y"), DeviceUnreachable, "HTTP 503.*: Service down"),
        (http(b"<html/>", status="500 oops", headers="Content-Type: text/html"), DeviceUnreachable, "HTTP 500"),
        (http(b"", status="404 no", headers="X: y"), DeviceRefused, "check the URL"),
        (http(b"", status="403 no", headers="X: y"), DeviceRefused, "HTTP 403"),
        (http(b"", status="301 there", headers="Location: http://127.0.0.1:9/x"), DeviceRefused, "127.0.0.1:9/x"),
        (http(b"\x1f\x8b\x08", headers="Content-Type: text/xml\r\nContent-Encoding: gzip"), DeviceUnreachable, "gzip"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", DeviceUnreachable, "broke"),
        (http(GOOD, length=len(GOOD) - 20), DeviceUnreachable, "no XML"),
    ],
    ids=[
        "bomb", "file", "deep", "wide", "garbage", "nothing", "half", "html", "json", "503", "500", "404", "403",
        "redirect", "gzip", "ssh", "short",
    ],
)  # fmt: skip
async def test_a_server_that_answers_anything_else_is_told_from_one_that_answers(clock, answer, error, words):
    async with raw_server(await answers(answer)) as url:
        session = session_to(url, clock)
        await session.connect()
        began = time.process_time()

        with pytest.raises(error, match=words):
            await session.get_status()
        await session.aclose()
    assert time.process_time() - began < 1.5


async def test_an_answer_that_is_too_long_is_cut_off_as_it_comes(clock):
    sent = 0

    async def serve(head: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\nContent-Length: 10000000000\r\n\r\n")
        while True:
            writer.write(b"<" * 65_536)
            sent += 65_536
            await writer.drain()

    async with raw_server(serve) as url:
        session = session_to(url, clock, timeout_s=10)
        await session.connect()
        with pytest.raises(DeviceUnreachable, match=f"more than {MAX_ANSWER} bytes"):
            await session.get_status()
        assert not session.connected
        await session.aclose()
    # Some more is under way in the system's own buffers.
    assert sent < 6 * MAX_ANSWER


@pytest.mark.parametrize("part", ["head", "body", "chunks"])
async def test_an_answer_that_comes_drop_by_drop_ends_with_the_timeout(clock, part):
    start = {
        "head": b"HTTP/1.1 200 OK\r\nX-Slow: ",
        "body": b"HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\nContent-Length: 1000000\r\n\r\n",
        "chunks": b"HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\nTransfer-Encoding: chunked\r\n\r\n",
    }[part]

    async def serve(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(start)
        while True:
            writer.write(b"1\r\nx\r\n" if part == "chunks" else b"x")
            await writer.drain()
            await asyncio.sleep(0.02)

    async with raw_server(serve) as url:
        session = session_to(url, clock, timeout_s=0.3)
        await session.connect()
        began = time.monotonic()

        with pytest.raises(DeviceUnreachable, match=r"within 0\.3 s"):
            await session.get_status()

        assert time.monotonic() - began < 2
        await session.aclose()


async def test_a_long_refusal_before_the_password_is_cut_off_too(clock):
    async def serve(head: bytes, writer: asyncio.StreamWriter) -> None:
        body = b"x" * (MAX_ANSWER + 100_000)
        writer.write(http(body, status="401 no", headers="WWW-Authenticate: Basic realm=x"))

    async with raw_server(serve) as url:
        session = session_to(url, clock, username="scada", password="secret")
        await session.connect()
        with pytest.raises(DeviceUnreachable, match="more than"):
            await session.get_status()
        await session.aclose()


async def test_a_command_that_was_given_up_is_not_repeated(stack, clock):
    server, session, driver = await at(stack, clock, timeout_s=0.2)
    await server.set_fault(Fault.SILENT)

    with pytest.raises(DeviceUnreachable, match=r"within 0\.2 s"):
        await driver.write(37)

    assert server.commands == 1
    assert driver.take_writes() == {"setpoint": 1}
    assert not session.connected
    with pytest.raises(DeviceUnreachable, match="not connected"):
        await driver.write(37)


async def test_what_was_given_up_is_not_delivered_by_the_system_later(clock):
    ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.read()
        except asyncio.IncompleteReadError:
            # The look whether anybody listens.
            pass
        except ConnectionResetError:
            ended.set_result("reset")
        else:
            ended.set_result(f"closed after {len(head)} bytes")
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    session = session_to(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", clock, timeout_s=0.2)
    await session.connect()
    with pytest.raises(DeviceUnreachable):
        await session.get_status()

    # What lies in the sender's buffers goes with the connection.
    assert await asyncio.wait_for(ended, 5) == "reset"
    await session.aclose()
    server.close()


async def test_one_connection_serves_many_calls(clock):
    connections: set[int] = set()

    async def serve(head: bytes, writer: asyncio.StreamWriter) -> None:
        connections.add(id(writer))
        writer.write(http(GOOD))

    async with raw_server(serve) as url:
        session = session_to(url, clock)
        await session.connect()
        for _ in range(5):
            await session.get_status()
        await session.aclose()
    assert len(connections) == 1


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.0 200 OK\r\nContent-Type: text/xml\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nConnection: close\r\n\r\n",
    ],
    ids=["old", "closing", "continuing"],
)
async def test_a_server_may_end_the_connection_with_each_answer(clock, head):
    async def serve(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(head + GOOD)
        writer.close()

    async with raw_server(serve) as url:
        session = session_to(url, clock)
        await session.connect()
        for _ in range(3):
            assert (await session.get_status()).reply.state == "running"
        await session.aclose()


async def test_a_proxy_of_the_environment_is_not_asked(stack, clock, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    _, _, driver = await at(stack, clock)

    assert (await driver.poll()).readings["P_kW"] is not None


async def test_the_password_and_the_query_stand_in_no_message(clock):
    async with raw_server(await answers(http(b"", status="403 no", headers="X: y"))) as url:
        session = session_to(f"{url}?token=hidden", clock, username="scada", password="secret")
        await session.connect()
        with pytest.raises(DeviceRefused) as caught:
            await session.get_status()
        await session.aclose()
    assert "hidden" not in str(caught.value)
    assert "secret" not in str(caught.value)


async def test_a_request_is_not_told_to_the_log(clock, caplog):
    caplog.set_level("INFO")
    async with raw_server(await answers(http(GOOD))) as url:
        session = session_to(f"{url}?token=hidden", clock)
        await session.connect()
        await session.get_status()
        await session.aclose()

    assert "hidden" not in caplog.text


def test_the_schema_judges_what_the_server_answers():
    # Or the comparison would prove nothing: an unknown state is no state.
    answer = etree.fromstring(GOOD.replace(b'"running"', b'"splendid"'))

    assert not SPECIFICATION.validate(message_in(etree.tostring(answer)))


def test_the_schema_comes_with_where_it_is_from():
    assert (Path(__file__).parent / "data" / "xml_da" / "README.md").exists()
