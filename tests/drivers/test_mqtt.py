"""MQTT devices: what is heard, what counts, what is told and what becomes of it."""

from __future__ import annotations

import asyncio
import gc
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from structlog.testing import capture_logs

from edge.drivers.errors import DeviceAway, DeviceRefused, DeviceUnreachable, ReadingInvalid
from edge.drivers.json_values import MAX_PAYLOAD
from edge.drivers.mqtt import MqttDriver, MqttSession
from edge.profiles.loader import load_all, load_bodies
from edge.profiles.model import Identity, Profile
from edge.profiles.reading import profile_from_builtins
from edge.simulators.device import Fault
from edge.simulators.mqtt import SimulatedMqttDevice
from tests.drivers.benches import NAMEPLATE_KW, SharedClock
from tests.drivers.mqtt_peers import OldBroker, Peer, peer
from tests.servers import DeviceBroker, device_broker

PROFILES = load_all()
CUBE = PROFILES["iwell_cube_mqtt"]
STATE, SETPOINT = "iwell/cube-1/state", "iwell/cube-1/setpoint"
ACK, AVAILABILITY = "iwell/cube-1/setpoint/ack", "iwell/cube-1/availability"
SAID = {"power_w": -12_000, "soc_pct": 54.2, "soh_pct": 98, "max_power_w": 60_000}


class Table:
    """A broker, and who sits at it: sessions and drivers of ours, devices, and others."""

    def __init__(self, broker: DeviceBroker, stack: AsyncExitStack) -> None:
        self.broker = broker
        self.clock = SharedClock()
        self._stack = stack

    def session(self, *, timeout_s: float = 1.0, min_gap_s: float = 0.0, **options: Any) -> MqttSession:
        session = MqttSession(
            **{
                "url": self.broker.url,
                "username": "",
                "password": "",
                "timeout_s": timeout_s,
                "min_gap_s": min_gap_s,
                "clock": self.clock,
                "sleep": self.clock.sleep,
                **options,
            }
        )
        self._stack.push_async_callback(session.aclose)
        return session

    def driver(self, session: MqttSession, profile: Profile = CUBE) -> MqttDriver:
        return MqttDriver(session=session, profile=profile, unit=1, nameplate_kw=NAMEPLATE_KW)

    async def peer(self, *topics: str, **options: Any) -> Peer:
        return await self._stack.enter_async_context(peer(self.broker.url, *topics, **options))

    async def cube(self, profile: Profile = CUBE, **options: Any) -> SimulatedMqttDevice:
        device = SimulatedMqttDevice(
            profile=profile,
            nameplate_kw=NAMEPLATE_KW,
            url=self.broker.url,
            clock=self.clock,
            **{"period_s": 0.1, "retry_s": 0.02, **options},
        )
        await device.start()
        self._stack.push_async_callback(device.stop)
        await device.is_up()
        return device


@pytest.fixture
async def table(site_broker: DeviceBroker) -> AsyncIterator[Table]:
    async with AsyncExitStack() as stack:
        yield Table(site_broker, stack)


@pytest.fixture
async def listening(table: Table) -> tuple[MqttSession, MqttDriver, Peer]:
    """A session that listens, its driver, and somebody in the place of the device, who has said nothing yet."""
    by_hand = await table.peer(SETPOINT)
    session = table.session(timeout_s=0.3)
    driver = table.driver(session)
    await session.connect()
    return session, driver, by_hand


async def until(is_so: Any) -> None:
    async with asyncio.timeout(10):
        while not is_so():  # noqa: ASYNC110 - whatever is waited for has no event
            await asyncio.sleep(0)


def accepting(by_hand: Peer, **state: Any) -> None:
    """Say yes to each command, and then this state."""

    async def answer(command: dict[str, Any]) -> None:
        await by_hand.say(ACK, {"id": command["id"], "accepted": True})
        if state:
            await by_hand.say(STATE, {**SAID, **state})

    by_hand.on_command = answer


# --- what is heard ------------------------------------------------------------------------------------------


async def test_a_reading_is_what_the_device_said_last_and_as_old_as_that(table, listening):
    _, driver, by_hand = listening
    await by_hand.say(STATE, SAID)
    assert (await driver.poll()).readings == {"P_kW": -12.0, "SoC_pct": 54.2, "SoH_pct": 98.0}
    said_s = table.clock()
    table.clock.advance(29)

    result = await driver.poll()

    assert result.readings["P_kW"] == -12.0
    assert result.said_at_s == {"P_kW": said_s, "SoC_pct": said_s, "SoH_pct": said_s}


async def test_a_device_that_has_said_nothing_for_too_long_is_away_and_its_broker_is_not(table, listening):
    session, driver, by_hand = listening
    await by_hand.say(STATE, SAID)
    await driver.poll()
    table.clock.advance(42)

    with pytest.raises(DeviceAway, match=rf"no message on {STATE} for 42 s"):
        await driver.poll()
    with pytest.raises(DeviceAway, match="for 42 s"):
        await driver.write(50)

    assert session.connected
    assert by_hand.heard == []


async def test_a_device_that_says_nothing_costs_the_line_its_timeout_once(listening):
    _, driver, _ = listening
    with pytest.raises(DeviceAway, match=f"no message on {STATE} so far"):
        await driver.identify()
    loop = asyncio.get_running_loop()
    begun = loop.time()

    for _ in range(20):
        with pytest.raises(DeviceAway):
            await driver.identify()

    assert loop.time() - begun < 0.3


async def test_what_the_broker_kept_is_no_reading_until_the_device_speaks(table):
    by_hand = await table.peer()
    await by_hand.say(STATE, SAID, retain=True)
    session = table.session(timeout_s=0.3)
    driver = table.driver(session)
    await session.connect()

    with pytest.raises(DeviceAway, match="but one that the broker had kept, of unknown age"):
        await driver.poll()
    await by_hand.say(STATE, {**SAID, "power_w": 5000}, retain=True)
    assert (await driver.poll()).readings["P_kW"] == 5.0


async def test_what_a_device_says_once_holds_at_any_age(table):
    serial = msgspec.convert(
        {
            "name": "serial",
            "topic": "iwell/cube-1/info",
            "path": "serial",
            "text": True,
            "kept": True,
            "source": "a test",
            "confidence": "unverified",
        },
        type(CUBE.points["power"]),
    )
    check = {"point": "serial", "equals": "C-7"}
    profile = msgspec.structs.replace(
        CUBE,
        points={**CUBE.points, "serial": serial},
        identity=msgspec.convert({"checks": [check]}, Identity),
    )
    by_hand = await table.peer()
    await by_hand.say("iwell/cube-1/info", {"serial": "C-7"}, retain=True)
    session = table.session()
    driver = table.driver(session, profile)
    await session.connect()
    await by_hand.say(STATE, SAID)
    await driver.identify()
    table.clock.advance(86_400)
    await by_hand.say(STATE, SAID)

    await driver.identify()

    await by_hand.say("iwell/cube-1/info", {"serial": "C-8"}, retain=True)
    await until(lambda: session.number >= 4)
    with pytest.raises(DeviceRefused, match=r"serial .* reads 'C-8', expected 'C-7'"):
        await driver.identify()


async def test_a_device_that_says_that_it_is_gone_is_gone_at_once(table):
    by_hand = await table.peer()
    await by_hand.say(AVAILABILITY, "offline", retain=True)
    session = table.session()
    driver = table.driver(session)
    await session.connect()
    await by_hand.say(STATE, SAID)
    await until(lambda: session.number >= 2)

    with pytest.raises(DeviceAway, match=f"{AVAILABILITY} says offline"):
        await driver.poll()
    await by_hand.say(AVAILABILITY, "online")
    await until(lambda: session.number >= 3)
    assert (await driver.poll()).readings["P_kW"] == -12.0


async def test_a_last_will_ends_a_device_though_its_last_word_is_fresh(table):
    device = await table.cube()
    session = table.session()
    driver = table.driver(session)
    await session.connect()
    await driver.poll()

    await device.set_fault(Fault.REFUSE)

    await until(lambda: session.topic(AVAILABILITY).changes)
    with pytest.raises(DeviceAway, match="says offline"):
        await driver.poll()
    await device.set_fault(Fault.NONE)
    await device.is_up()
    await until(lambda: session.topic(AVAILABILITY).changes == 2)
    await driver.identify()


async def test_availability_may_stand_in_json_and_what_is_no_word_of_it_says_nothing(table):
    assert CUBE.availability is not None
    where = msgspec.structs.replace(CUBE.availability, path="state")
    session = table.session()
    driver = table.driver(session, msgspec.structs.replace(CUBE, availability=where))
    await session.connect()
    by_hand = await table.peer()
    await by_hand.say(STATE, SAID)
    for said in ("offline", {"state": "sleeping"}, {"other": "offline"}, "{", {"state": "online"}):
        await by_hand.say(AVAILABILITY, said)
        before = session.number
        await until(lambda before=before: session.number > before or session.number >= 2)
        assert (await driver.poll()).readings["P_kW"] == -12.0
    await by_hand.say(AVAILABILITY, {"state": "offline"})
    await until(lambda: session.number == 7)

    with pytest.raises(DeviceAway, match="says offline"):
        await driver.poll()


@pytest.mark.parametrize(
    "payload",
    [
        b'{"power_w": NaN, "max_power_w": 1}',
        b'{"power_w": 1, "max_power_w": 1',
        b"\x00\xff",
        b"[" * 60_000,
        b" " * (MAX_PAYLOAD + 1),
        b'"a text"',
        b"",
    ],
)
async def test_nonsense_is_never_a_reading_and_what_follows_it_is(listening, payload):
    session, driver, by_hand = listening
    await by_hand.say(STATE, payload)
    await until(lambda: session.number == 1)

    try:
        result = await driver.poll()
    except ReadingInvalid:
        pass
    else:
        assert set(result.readings.values()) == {None}
        assert result.readback is None

    await by_hand.say(STATE, SAID)
    await until(lambda: session.number == 2)
    assert (await driver.poll()).readings["P_kW"] == -12.0


async def test_one_wrong_value_costs_only_itself(listening):
    session, driver, by_hand = listening
    await by_hand.say(STATE, {**SAID, "power_w": "a lot", "soc_pct": None, "soh_pct": [98]})
    await until(lambda: session.number == 1)

    result = await driver.poll()

    assert {key: value for key, value in result.readings.items() if value is not None} == {}
    assert result.readback == 100


async def test_more_than_a_broker_may_send_is_not_even_received(listening):
    session, driver, by_hand = listening
    await by_hand.say(STATE, SAID)
    await by_hand.say(STATE, b" " * 5 * MAX_PAYLOAD)
    await by_hand.say(AVAILABILITY, "online")
    await until(lambda: session.number == 2)

    assert (await driver.poll()).readings["P_kW"] == -12.0


async def test_of_a_flood_only_the_newest_is_kept(listening):
    session, driver, by_hand = listening
    for power_w in range(3000):
        await by_hand.client.publish(STATE, json.dumps({**SAID, "power_w": power_w}), qos=0)
    await by_hand.say(AVAILABILITY, "online")
    await until(lambda: session.topic(AVAILABILITY).newest is not None)

    assert (await driver.poll()).readings["P_kW"] == pytest.approx(2.999)


# --- what is told -------------------------------------------------------------------------------------------


async def test_a_command_says_what_it_is_and_how_long_it_holds_and_is_never_kept(table, listening):
    _, driver, by_hand = listening
    accepting(by_hand, max_power_w=22_200)
    await by_hand.say(STATE, SAID)

    await driver.write(37)

    message = await by_hand.hears(1)
    command = json.loads(message.payload)
    assert (command["max_power_w"], command["valid_s"]) == (22_200, 60)
    said_s = (datetime.now(UTC) - datetime.fromisoformat(command["ts"])).total_seconds()
    assert abs(said_s) < 5
    assert (message.retain, message.qos) == (False, 1)
    # What is given up after the timeout does not arrive later.
    assert message.properties.MessageExpiryInterval == 1
    late = await table.peer(SETPOINT)
    await by_hand.say(SETPOINT, {"id": "x"})
    assert json.loads((await late.hears(1)).payload) == {"id": "x"}


async def test_a_refusal_comes_with_the_devices_words_and_not_with_more_of_them(listening):
    session, driver, by_hand = listening
    await by_hand.say(STATE, SAID)

    async def refuse(command: dict[str, Any]) -> None:
        await by_hand.say(
            ACK, {"id": command["id"], "accepted": False, "reason": "too hot\n\x1b[31m" + "!" * 999}
        )

    by_hand.on_command = refuse

    with pytest.raises(DeviceRefused, match=rf"refused what was sent to {SETPOINT}: too hot") as caught:
        await driver.write(37)

    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300
    assert session.connected


@pytest.mark.parametrize(
    "answer",
    [
        {"id": "another", "accepted": True},
        {"id": None, "accepted": True},
        {"accepted": True},
        {"id": "$id"},
        {"id": "$id", "accepted": "yes"},
        {"id": "$id", "accepted": 1},
        ["$id", True],
        "{",
        b"\xff",
    ],
)
async def test_what_does_not_say_yes_to_this_command_is_no_yes(listening, answer):
    session, driver, by_hand = listening
    await by_hand.say(STATE, SAID)

    async def say(command: dict[str, Any]) -> None:
        said = (
            {**answer, "id": command["id"]}
            if isinstance(answer, dict) and answer.get("id") == "$id"
            else answer
        )
        await by_hand.say(ACK, said)

    by_hand.on_command = say

    with pytest.raises(DeviceAway, match=rf"no answer on {ACK} to what was sent to {SETPOINT} within 0\.3 s"):
        await driver.write(37)
    assert session.connected
    assert driver.take_writes() == {"setpoint": 1}


async def test_answers_that_come_late_or_twice_answer_nothing_else(listening):
    _, driver, by_hand = listening
    await by_hand.say(STATE, SAID)
    with pytest.raises(DeviceAway, match="no answer"):
        await driver.write(37)
    first = json.loads((await by_hand.hears(1)).payload)["id"]

    async def answer(command: dict[str, Any]) -> None:
        for identifier, accepted in (
            (first, True),
            (first, True),
            (command["id"], False),
            (command["id"], True),
        ):
            await by_hand.say(ACK, {"id": identifier, "accepted": accepted})

    by_hand.on_command = answer

    with pytest.raises(DeviceRefused, match="without a reason"):
        await driver.write(38)


async def test_an_answer_that_the_broker_kept_answers_nothing(table):
    by_hand = await table.peer(SETPOINT)
    session = table.session(timeout_s=0.3)
    driver = table.driver(session)
    await session.connect()
    await by_hand.say(STATE, SAID)

    async def keep(command: dict[str, Any]) -> None:
        async with peer(table.broker.url) as other:
            await other.say(ACK, {"id": command["id"], "accepted": True}, retain=True)

    by_hand.on_command = keep
    # Live it is one, though it is to be kept as well.
    await driver.write(37)
    by_hand.on_command = None
    await session.connect()
    await by_hand.say(STATE, SAID)

    with pytest.raises(DeviceAway, match="no answer"):
        await driver.write(38)


async def test_a_device_whose_last_will_comes_in_place_of_its_answer_keeps_nobody_waiting(table):
    device = await table.cube(retry_s=30)
    session = table.session(timeout_s=30)
    driver = table.driver(session)
    await session.connect()
    await driver.poll()
    await device.set_fault(Fault.DROP)

    async with asyncio.timeout(5):
        with pytest.raises(DeviceAway, match="says offline"):
            await driver.write(37)
    assert driver.take_writes() == {"setpoint": 1}


async def test_nobody_to_hear_a_command_is_told_at_once(table):
    by_hand = await table.peer()
    session = table.session(timeout_s=30)
    driver = table.driver(session)
    await session.connect()
    await by_hand.say(STATE, SAID)

    async with asyncio.timeout(5):
        with pytest.raises(DeviceAway, match=f"nobody listens to {SETPOINT}"):
            await driver.write(37)


@pytest.mark.parametrize("qos", [0, 1])
async def test_a_device_without_answers_is_judged_by_what_it_says_then(table, qos):
    profile = profile_from_builtins(load_bodies()["iwell_cube_mqtt"], {"ack_topic": "", "qos": qos})
    session = table.session(timeout_s=5)
    driver = table.driver(session, profile)
    await session.connect()
    by_hand = await table.peer(SETPOINT)
    await by_hand.say(STATE, SAID)

    await driver.write(37)
    assert (await by_hand.hears(1)).qos == qos
    await by_hand.say(STATE, {**SAID, "max_power_w": 22_200})

    assert await driver.read_setpoint() == pytest.approx(37)


async def test_a_device_with_words_and_places_of_its_own_is_a_matter_of_parameters(table):
    parameters = {
        "state_topic": "EMS/V2/Inverter",
        "availability_topic": "EMS/V2/alive",
        "availability_path": "v",
        "online_word": "1",
        "offline_word": "0",
        "power_path": "$.P[0]",
        "power_sign": -1,
        "power_scale": 1,
        "cap_path": '["P max"]',
        "setpoint_topic": "EMS/V2/Control",
        "command": "$value;$id",
        "ack_topic": "EMS/V2/Answer",
        "ack_id_path": "re",
        "ack_ok_path": "result.ok",
        "ack_reason_path": "result.why",
    }
    profile = profile_from_builtins(load_bodies()["iwell_cube_mqtt"], parameters)
    session = table.session(timeout_s=5)
    driver = table.driver(session, profile)
    await session.connect()
    by_hand = await table.peer("EMS/V2/Control")
    await by_hand.say("EMS/V2/Inverter", {"P": [-12.5, 0], "P max": 60})
    assert (await driver.poll()).readings["P_kW"] == 12.5

    writing = asyncio.create_task(driver.write(50))
    value, identifier = bytes((await by_hand.hears(1)).payload).decode().split(";")
    await by_hand.say("EMS/V2/Answer", {"re": identifier, "result": {"ok": False, "why": "not today"}})

    assert value == "30"
    with pytest.raises(DeviceRefused, match="not today"):
        await writing
    await by_hand.say("EMS/V2/alive", {"v": "0"})
    await until(lambda: session.topic("EMS/V2/alive").newest)
    with pytest.raises(DeviceAway, match="says 0"):
        await driver.poll()


@pytest.mark.parametrize("fault", [Fault.WRONG_UNIT, Fault.DELAY])
async def test_an_answer_in_anothers_name_or_too_late_is_none_and_the_setpoint_shows_all_the_same(
    table, fault
):
    device = await table.cube()
    session = table.session(timeout_s=0.3)
    driver = table.driver(session)
    await session.connect()
    await driver.poll()
    await device.set_fault(fault, delay_s=0.6)

    with pytest.raises(DeviceAway, match="no answer"):
        await driver.write(37)

    await device.set_fault(Fault.NONE)
    assert device.limit_in_force == pytest.approx(37)
    await driver.write(64)
    assert await driver.read_setpoint() == pytest.approx(64)


async def test_half_an_answer_is_none(table):
    device = await table.cube(period_s=30)
    session = table.session(timeout_s=0.5)
    driver = table.driver(session)
    await session.connect()
    await device.tell()
    await driver.poll()
    await device.set_fault(Fault.HALF_FRAME)

    with pytest.raises(DeviceAway, match="no answer"):
        await driver.write(37)
    with pytest.raises(ReadingInvalid, match=f"{STATE}: not JSON"):
        await driver.read_setpoint()


# --- what is in force ---------------------------------------------------------------------------------------


async def test_what_was_said_before_a_write_does_not_confirm_it(listening):
    _, driver, by_hand = listening
    accepting(by_hand)
    await by_hand.say(STATE, {**SAID, "max_power_w": 22_200})
    assert await driver.read_setpoint() == pytest.approx(37)

    await driver.write(37)

    with pytest.raises(DeviceAway, match=f"no message on {STATE} since the setpoint was sent"):
        await driver.read_setpoint()
    await by_hand.say(STATE, {**SAID, "max_power_w": 22_200})
    assert await driver.read_setpoint() == pytest.approx(37)


async def test_what_was_on_its_way_when_the_write_came_gets_time_to_be_overtaken(table):
    by_hand = await table.peer(SETPOINT)
    session = table.session(timeout_s=5)
    driver = table.driver(session)
    await session.connect()
    await by_hand.say(STATE, SAID)

    async def answer(command: dict[str, Any]) -> None:
        await by_hand.say(STATE, {**SAID, "max_power_w": 60_000})
        await by_hand.say(ACK, {"id": command["id"], "accepted": True})
        await by_hand.say(STATE, {**SAID, "max_power_w": 60_000})
        await by_hand.say(STATE, {**SAID, "max_power_w": command["max_power_w"]})

    by_hand.on_command = answer
    await driver.write(37)

    assert await driver.read_setpoint() == pytest.approx(37)


async def test_a_setpoint_that_a_foreigner_has_kept_is_seen_and_named_and_overcome(table):
    foreigner = await table.peer()
    await foreigner.say(SETPOINT, {"id": "f", "ts": "", "max_power_w": 6000, "valid_s": 60}, retain=True)
    device = await table.cube(naive=True)
    session = table.session()
    driver = table.driver(session)
    await session.connect()

    with capture_logs() as logs:
        await driver.identify()
        await driver.identify()

    (warning,) = [entry for entry in logs if entry["log_level"] == "warning"]
    assert (warning["topic"], warning["broker"]) == (SETPOINT, session.endpoint)
    await until(lambda: device.limit_in_force == pytest.approx(10))
    await device.tell()
    assert await driver.read_setpoint() == pytest.approx(10)
    await driver.write(64)
    assert await driver.read_setpoint() == pytest.approx(64)
    # It comes back with the device; ours never does.
    await device.restart()
    await device.is_up()
    await until(lambda: device.limit_in_force == pytest.approx(10))


async def test_topics_are_let_go_when_nobody_is_told_of_them_any_more(table):
    session = table.session()
    drivers = [table.driver(session) for _ in range(2)]
    assert drivers[0]._topics[STATE] is drivers[1]._topics[STATE]
    await session.connect()

    drivers.clear()

    gc.collect()
    assert dict(session._topics) == {}


async def test_a_device_that_comes_to_a_session_that_is_up_is_heard(table):
    session = table.session()
    await session.connect()
    await table.cube()
    driver = table.driver(session)

    await driver.identify()

    assert (await driver.poll()).readings["SoC_pct"] == pytest.approx(60)


async def test_the_pause_between_commands_is_kept(table):
    await table.cube()
    session = table.session(min_gap_s=0.5)
    driver = table.driver(session)
    await session.connect()
    await driver.write(50)
    await driver.write(60)
    await session.connect()
    await driver.write(70)

    assert table.clock.waits == [pytest.approx(0.5), pytest.approx(0.5)]
    assert session.next_command_at == table.clock() + 0.5


# --- the session --------------------------------------------------------------------------------------------


async def test_a_broker_that_is_gone_is_noticed_and_found_again(table):
    device = await table.cube()
    session = table.session()
    driver = table.driver(session)
    await session.connect()
    await driver.poll()
    generation = session.generation

    table.broker.stop()

    await until(lambda: not session.connected)
    with pytest.raises(DeviceUnreachable, match=r"not connected to 127\.0\.0\.1"):
        await driver.poll()
    with pytest.raises(DeviceUnreachable, match="not connected"):
        await driver.write(50)
    with pytest.raises(DeviceUnreachable, match=r"no connection to 127\.0\.0\.1:\d+: Connection refused"):
        await session.connect()
    table.broker.start()
    await session.connect()
    await device.is_up()
    assert (await driver.poll()).readings["P_kW"] is not None
    await driver.write(50)
    assert await driver.read_setpoint() == pytest.approx(50)
    assert session.generation == generation + 1


async def test_what_was_said_before_a_loss_is_nothing_any_more(table):
    by_hand = await table.peer()
    session = table.session(timeout_s=0.3)
    driver = table.driver(session)
    await session.connect()
    await by_hand.say(STATE, SAID)
    await driver.poll()

    await session.connect()

    with pytest.raises(DeviceAway, match="so far"):
        await driver.poll()


async def test_a_broker_that_answers_no_more_ends_the_session_under_a_command(table):
    device = await table.cube()
    session = table.session(timeout_s=0.3)
    driver = table.driver(session)
    await session.connect()
    await driver.poll()
    table.broker.freeze()

    with pytest.raises(DeviceUnreachable, match="broke: no answer"):
        await driver.write(50)

    assert not session.connected
    with pytest.raises(DeviceUnreachable, match=r"no answer within 0\.3 s"):
        await session.connect()
    table.broker.thaw()
    await until(lambda: device.connected)
    await session.connect()
    await driver.identify()
    await driver.write(80)
    assert await driver.read_setpoint() == pytest.approx(80)


@pytest.mark.long
async def test_a_network_that_brings_nothing_is_noticed_without_a_command(table):
    session = table.session()
    driver = table.driver(session)
    await session.connect()
    table.broker.freeze()

    async with asyncio.timeout(20):
        while session.connected:  # noqa: ASYNC110 - only the keep-alive of the library knows
            await asyncio.sleep(0.1)

    with pytest.raises(DeviceUnreachable, match="not connected"):
        await driver.poll()


@pytest.mark.services
async def test_who_may_not_come_in_is_told_so():
    with device_broker(users={"node": "right"}) as broker:
        async with AsyncExitStack() as stack:
            table = Table(broker, stack)
            with pytest.raises(DeviceUnreachable, match=r"Not authorized|Bad user name"):
                await table.session(username="node", password="wrong").connect()

            session = table.session(username="node", password="right")
            await session.connect()
            assert session.connected


@pytest.mark.services
async def test_a_command_that_the_broker_does_not_take_is_refused_and_says_so():
    rights = ("user node", "topic read iwell/#", "user device", "topic readwrite iwell/#")
    with device_broker(users={"node": "n", "device": "d"}, rights=rights) as broker:
        async with AsyncExitStack() as stack:
            table = Table(broker, stack)
            await table.cube(username="device", password="d")
            session = table.session(username="node", password="n")
            driver = table.driver(session)
            await session.connect()
            await driver.poll()

            with pytest.raises(DeviceRefused, match=f"does not take messages to {SETPOINT}: Not authorized"):
                await driver.write(50)
            assert session.connected


@pytest.mark.parametrize("refuses", ["connack", "mqtt5", "hang_up"])
async def test_a_broker_of_mqtt_3_1_1_is_spoken_to_as_such(refuses):
    old = OldBroker(refuses, state=(STATE, json.dumps(SAID).encode()), ack_topic=ACK)
    await old.start()
    clock = SharedClock()
    session = MqttSession(
        url=f"mqtt://127.0.0.1:{old.port}",
        username="",
        password="",
        timeout_s=1,
        min_gap_s=0,
        clock=clock,
        sleep=clock.sleep,
    )
    driver = MqttDriver(session=session, profile=CUBE, unit=1, nameplate_kw=NAMEPLATE_KW)
    try:
        await session.connect()
        assert (await driver.poll()).readings["P_kW"] == -12.0

        await driver.write(37)

        ((flags, topic, payload),) = old.published
        # QoS 1, neither retained nor sent before.
        assert (flags, topic, json.loads(payload)["max_power_w"]) == (0b0010, SETPOINT, 22_200)
        await session.connect()
        assert old.greetings == [5, 4, 4]
    finally:
        await session.aclose()
        await old.stop()


async def test_a_broker_that_knew_mqtt_5_is_not_taken_for_one_that_does_not(table):
    session = table.session(timeout_s=0.3)
    await session.connect()
    hangs_up = OldBroker("hang_up", state=(STATE, b""))
    await hangs_up.start()
    session._port = hangs_up.port

    with pytest.raises(DeviceUnreachable, match="hung up on us"):
        await session.connect()

    assert hangs_up.greetings == [5]
    await hangs_up.stop()


async def test_who_takes_a_connection_and_says_nothing_is_left_and_keeps_nothing_of_us():
    came, ended = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.set()
        while await reader.read(1000):
            pass
        writer.close()
        ended.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    clock = SharedClock()
    session = MqttSession(
        url=f"mqtt://127.0.0.1:{port}", username="", password="", timeout_s=0.2, min_gap_s=0, clock=clock,
        sleep=clock.sleep,
    )  # fmt: skip
    try:
        with pytest.raises(DeviceUnreachable, match=r"no answer within 0\.2 s"):
            await session.connect()
        async with asyncio.timeout(5):
            await ended.wait()

        # Nor does who is called away while it still connects.
        came.clear()
        ended.clear()
        session.timeout_s = 1.0
        connecting = asyncio.create_task(session.connect())
        await came.wait()
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        async with asyncio.timeout(5):
            await ended.wait()
    finally:
        server.close()


@pytest.mark.services
async def test_a_broker_is_known_by_the_systems_authorities(tmp_path, monkeypatch):
    certificate = _certificate(tmp_path / "broker.pem")
    with device_broker(tls=certificate) as broker:
        async with AsyncExitStack() as stack:
            table = Table(broker, stack)
            session = table.session()
            assert session.endpoint == f"localhost:{broker.port}"
            with pytest.raises(DeviceUnreachable, match="certificate verify failed"):
                await session.connect()

            # Where OpenSSL looks for those of the system.
            monkeypatch.setenv(ssl.get_default_verify_paths().openssl_cafile_env, str(certificate))
            await session.connect()
            assert session.connected


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("mqtt://site-broker", "site-broker:1883"),
        ("mqtts://site-broker", "site-broker:8883"),
        ("mqtt://[fd00::1]:1900", "[fd00::1]:1900"),
    ],
)
def test_a_scheme_has_its_own_port(url, endpoint):
    clock = SharedClock()
    session = MqttSession(
        url=url, username="", password="", timeout_s=1, min_gap_s=0, clock=clock, sleep=clock.sleep
    )
    assert session.endpoint == endpoint


def _certificate(path: Path) -> Path:
    """Key and certificate of a broker at localhost, who vouches for itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    names: list[x509.GeneralName] = [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return path
