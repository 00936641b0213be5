"""Devices with an HTTP interface: what is asked and told, who asks, and what is no answer."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from edge.drivers.errors import DeviceRefused, DeviceUnreachable, ReadingInvalid
from edge.drivers.http_json import HttpDriver, HttpSession
from edge.drivers.json_values import MAX_PAYLOAD
from edge.profiles.errors import ProfileError
from edge.profiles.loader import DATA, load_body
from edge.profiles.model import Profile
from edge.profiles.reading import profile_from_builtins
from edge.simulators.device import Fault
from edge.simulators.http_json import SimulatedHttp
from tests.drivers.benches import NAMEPLATE_KW, SharedClock
from tests.drivers.test_xml_da import answers, http, raw_server

INVERTER = load_body(DATA / "inverter" / "generic_http_inverter.yaml")
BATTERY = load_body(DATA / "battery" / "generic_http_battery.yaml")
CHARGER = load_body(DATA / "ev_charger" / "generic_http_charger.yaml")


@pytest.fixture
def clock() -> SharedClock:
    return SharedClock()


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


def session_to(url: str, clock: SharedClock, *, timeout_s: float = 2.0, **login: Any) -> HttpSession:
    return HttpSession(url=url, timeout_s=timeout_s, min_gap_s=0, clock=clock, sleep=clock.sleep, **login)


async def at(
    stack: AsyncExitStack,
    clock: SharedClock,
    body: dict[str, Any] = INVERTER,
    *,
    login: dict[str, str] | None = None,
    tells: dict[str, str] | None = None,
    **parameters: float | str,
) -> tuple[SimulatedHttp, HttpSession, HttpDriver]:
    """A device that wants this `login`, and a driver that tells it this one; the same where only one is said."""
    profile = profile_from_builtins(body, parameters)
    device = SimulatedHttp(profile=profile, nameplate_kw=NAMEPLATE_KW, clock=clock, **(login or {}))
    await device.start()
    stack.push_async_callback(device.stop)
    session = session_to(device.url, clock, **dict[str, Any](login or {} if tells is None else tells))
    return device, session, await driver_of(stack, session, profile)


async def driver_of(stack: AsyncExitStack, session: HttpSession, profile: Profile) -> HttpDriver:
    stack.push_async_callback(session.aclose)
    await session.connect()
    return HttpDriver(session=session, profile=profile, unit=1, nameplate_kw=NAMEPLATE_KW)


# --- what is asked and told


async def test_everything_at_one_path_is_one_request(stack, clock):
    device, _, driver = await at(stack, clock, BATTERY)

    result = await driver.poll()

    assert [request[:2] for request in device.requests] == [("GET", "/api/v1/state")]
    assert result.readings == {"P_kW": pytest.approx(device.machine.power_kw, abs=1e-6), "SoC_pct": 60.0}
    assert result.readback == 100


async def test_a_setpoint_is_told_in_the_words_of_the_maker(stack, clock):
    device, _, driver = await at(
        stack,
        clock,
        write_path="/inverters/7/limit?unit=percent",
        write_method="POST",
        write_body='{"cmd": "limit", "args": [$value, "keep"], "ref": "$id"}',
        limit_scale=100,
    )

    await driver.write(37)

    method, path, body = device.requests[-1]
    assert (method, path) == ("POST", "/inverters/7/limit?unit=percent")
    told = json.loads(body)
    assert told["args"] == [0.37, "keep"]
    assert len(told["ref"]) == 36
    assert await driver.read_setpoint() == pytest.approx(37)


async def test_a_setpoint_may_stand_in_the_path_or_alone_in_the_body(stack, clock):
    device, _, driver = await at(stack, clock, write_path="limit/$value/set", write_body="", limit_scale=0.1)

    await driver.write(37.5)

    assert device.requests[-1] == ("PUT", "/limit/375/set", b"375")
    assert await driver.read_setpoint() == pytest.approx(37.5)


async def test_a_charger_is_told_amperes_and_pauses_below_six(stack, clock):
    device, _, driver = await at(stack, clock, CHARGER)

    await driver.write(50)
    full = NAMEPLATE_KW * 1000 / (230 * 3)
    assert device.get("limit") == pytest.approx(full / 2, abs=1e-3)
    await driver.write(5)

    assert device.get("limit") == 0
    assert await driver.read_setpoint() == 5
    readings = (await driver.poll()).readings
    assert readings["P_kW"] is not None
    assert readings["P_kW"] <= 0


async def test_a_sign_that_the_device_has_the_other_way_round_is_turned(stack, clock):
    device, _, driver = await at(stack, clock, BATTERY, power_sign=-1)

    readings = (await driver.poll()).readings

    assert readings["P_kW"] == pytest.approx(device.machine.power_kw, abs=1e-6)


async def test_a_url_may_have_a_path_and_a_query_of_its_own(clock):
    heads: list[bytes] = []

    async def serve(head: bytes, writer: Any) -> None:
        heads.append(head.split(b"\r\n")[0])
        writer.write(http(b"{}", headers="Content-Type: application/json"))

    async with raw_server(serve) as url:
        session = session_to(f"{url}/site?key=1", clock)
        await session.connect()
        await session.ask("GET", "/state?all=yes", headers={})
        await session.aclose()
    assert heads == [b"GET /da/site/state?key=1&all=yes HTTP/1.1"]


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"body": '{"limit": 5}'}, "limit.set[0].value"),
        ({"write_path": "limit/$moment"}, "points.limit.write_path"),
        ({"body": "$valid_s"}, "points.limit.body"),
    ],
)
def test_a_template_that_says_nothing_or_too_much_is_refused_at_load(change, key):
    body = {**INVERTER, "points": {**INVERTER["points"], "limit": {**INVERTER["points"]["limit"], **change}}}

    with pytest.raises(ProfileError) as caught:
        profile_from_builtins(body)
    assert caught.value.key == key


# --- who asks


@pytest.mark.parametrize("header", ["authorization", "api_key"])
async def test_a_token_goes_with_every_request_in_its_header(stack, clock, header):
    word = "Bearer $password" if header == "authorization" else "$password"
    given: dict[str, Any] = {header: word}
    device, _, driver = await at(stack, clock, login={"password": "t0k$username ü"}, **given)

    await driver.write(37)

    assert await driver.read_setpoint() == pytest.approx(37)
    assert device.commands == 2


async def test_a_device_may_want_user_and_password_instead(stack, clock):
    device, _, driver = await at(stack, clock, login={"username": "grid", "password": "x:y"})

    await driver.write(37)

    assert device.get("limit") == 37


@pytest.mark.parametrize(
    ("wanted", "told", "parameters", "todo"),
    [
        (
            {"password": "right"},
            {"password": "wrong"},
            {"api_key": "$password"},
            "check the device's user name and password",
        ),
        (
            {"username": "grid", "password": "right"},
            {"username": "grid", "password": "wrong"},
            {},
            "check the device's user name and password",
        ),
        ({"username": "grid", "password": "right"}, {}, {}, "set a user name and password"),
    ],
)
async def test_who_is_not_let_in_is_told_what_to_do(stack, wanted, told, parameters, todo):
    device, session, driver = await at(stack, SharedClock(), login=wanted, tells=told, **parameters)

    with pytest.raises(DeviceRefused, match=f"{todo}.*HTTP 401") as caught:
        await driver.poll()

    assert device.commands == 0
    assert session.connected
    assert "wrong" not in str(caught.value)


async def test_a_token_is_not_told_a_second_time_in_another_way(clock):
    heads: list[bytes] = []

    async def serve(head: bytes, writer: Any) -> None:
        heads.append(head)
        writer.write(http(b"", status="401 no", headers="WWW-Authenticate: Basic realm=x"))

    async with raw_server(serve) as url:
        session = session_to(url, clock, username="grid", password="secret")
        await session.connect()
        answer = await session.ask("GET", "state", headers={"X-API-Key": "$password"})
        await session.aclose()
    assert answer.status == 401
    (head,) = heads
    assert b"X-API-Key: secret" in head
    assert b"Authorization" not in head


# --- what is no answer


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (http(b"", status="404 no", headers="X: y"), DeviceRefused, "check the URL"),
        (http(b"limit locked", status="422 no", headers="X: y"), DeviceRefused, "HTTP 422.*: limit locked"),
        (http(b"", status="403 no", headers="X: y"), DeviceRefused, "not allowed to this user"),
        (http(b"", status="302 there", headers="Location: https://elsewhere/"), DeviceRefused, "https://elsewhere/"),
        (http(b"", status="500 oops", headers="X: y"), DeviceUnreachable, "HTTP 500"),
        (http(b"later", status="429 busy", headers="X: y"), DeviceUnreachable, "HTTP 429.*: later"),
        (http(b"<html>Login</html>", headers="Content-Type: text/html"), ReadingInvalid, "not JSON"),
        (http(b""), ReadingInvalid, "not JSON"),
        (http(b"[" * 60_000), ReadingInvalid, "not JSON|deeply"),
        (http(b'{"power_w": NaN}'), ReadingInvalid, "not JSON"),
        (http(b"x" * (MAX_PAYLOAD + 1)), DeviceUnreachable, f"more than {MAX_PAYLOAD} bytes"),
        (http(b"{}", length=50)[:-1] + b"", DeviceUnreachable, "within 0.5 s"),
        (http(b"\x1f\x8b", headers="Content-Encoding: gzip"), DeviceUnreachable, "gzip"),
    ],
    ids=[
        "404", "422", "403", "redirect", "500", "429", "html", "nothing", "deep", "nan", "long", "short", "gzip",
    ],
)  # fmt: skip
async def test_anything_but_an_answer_is_said_to_be_what_it_is(stack, clock, answer, error, words):
    async with raw_server(await answers(answer)) as url:
        session = session_to(url, clock, timeout_s=0.5)
        driver = await driver_of(stack, session, profile_from_builtins(INVERTER, {}))

        with pytest.raises(error, match=words):
            await driver.poll()
        await session.aclose()


@pytest.mark.parametrize("said", ['"many"', "{}", "[1]", "1e400"])
async def test_a_number_that_is_none_costs_only_its_own_reading(stack, clock, said):
    state = b'{"power_w": ' + said.encode() + b', "limit": {"limit_pct": 50}}'
    async with raw_server(await answers(http(state))) as url:
        session = session_to(url, clock)
        driver = await driver_of(stack, session, profile_from_builtins(INVERTER, {}))
        if said == "1e400":
            # Not a number that JSON's readers agree on: nothing of the answer is believed.
            with pytest.raises(ReadingInvalid):
                await driver.poll()
        else:
            result = await driver.poll()
            assert result.readings == {"P_kW": None}
            assert result.readback == 50
        await session.aclose()


async def test_a_setpoint_that_is_no_number_is_no_confirmation(stack, clock):
    async with raw_server(await answers(http(b'{"limit": {"limit_pct": "off"}}'))) as url:
        session = session_to(url, clock)
        driver = await driver_of(stack, session, profile_from_builtins(INVERTER, {}))

        with pytest.raises(ReadingInvalid, match=r"limit in force at limit\.limit_pct"):
            await driver.read_setpoint()
        await session.aclose()


async def test_a_value_that_the_device_leaves_out_is_none(stack, clock):
    device, _, driver = await at(stack, clock, BATTERY)
    device.lack("state_of_charge")

    readings = (await driver.poll()).readings

    assert readings["SoC_pct"] is None
    assert readings["P_kW"] is not None


async def test_a_refused_setpoint_gives_the_devices_words(stack, clock):
    device, session, driver = await at(stack, clock)
    await device.set_fault(Fault.WRITE_EXCEPTION)

    with pytest.raises(
        DeviceRefused, match=r"refused to write api/v1/limit \(HTTP 409\): not while under local"
    ):
        await driver.write(37)
    assert session.connected
    assert driver.take_writes() == {"limit": 1}


async def test_a_path_that_fails_costs_only_what_is_read_there(stack, clock):
    points = {**BATTERY["points"]}
    points["state_of_charge"] = {**points["state_of_charge"], "read_path": "api/v1/cells"}
    device, _, driver = await at(stack, clock, {**BATTERY, "points": points})
    device.lack("state_of_charge")

    result = await driver.poll()

    assert result.readings["SoC_pct"] is None
    assert result.readings["P_kW"] is not None
    assert result.readback == 100


async def test_a_certificate_that_nobody_here_trusts_is_no_connection(clock):
    # The server speaks no TLS at all: whatever it says, nothing is told to it.
    heads: list[bytes] = []

    async def serve(head: bytes, writer: Any) -> None:
        heads.append(head)

    async with raw_server(serve) as url:
        session = session_to(url.replace("http:", "https:"), clock, password="secret")
        await session.connect()
        with pytest.raises(DeviceUnreachable, match=r"no secure connection|broke|within"):
            await session.ask("GET", "state", headers={"X-API-Key": "$password"})
        await session.aclose()
    assert heads == []


def test_headers_belong_to_http_alone():
    with pytest.raises(ProfileError) as caught:
        profile_from_builtins({**load_body(DATA / "inverter" / "xml_da_device.yaml"), "headers": {"X": "y"}})
    assert caught.value.key == "headers"
