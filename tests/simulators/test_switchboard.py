"""The switches of a simulated fleet, as whoever presses them over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from pymodbus import FramerType
from pymodbus.client import AsyncModbusTcpClient

from edge.profiles.loader import load_all
from edge.simulators.device import Fault
from edge.simulators.fleet import Fleet, FleetDevice, FleetError, SimulatedFleet, build_fleet
from edge.simulators.modbus import SimulatedDevice
from edge.simulators.switchboard import Observer, Switchboard

PROFILES = load_all()


@pytest.fixture
async def pv() -> AsyncIterator[SimulatedDevice]:
    device = SimulatedDevice(profile=PROFILES["generic_modbus"], unit=1, nameplate_kw=60)
    await device.start()
    yield device
    await device.stop()


@pytest.fixture
async def board(pv: SimulatedDevice) -> AsyncIterator[httpx.AsyncClient]:
    switchboard = Switchboard({"PV": pv})
    await switchboard.start()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{switchboard.port}") as client:
        yield client
    await switchboard.stop()


async def test_it_lists_what_controllers_did_to_each_device(pv, board):
    pv.registers.set("limit_target", 40)
    pv.wrote(["limit_target"])

    (listed,) = (await board.get("/devices")).json()

    one = (await board.get("/devices/PV")).json()
    assert listed.keys() == one.keys()
    assert listed["tag"] == one["tag"] == "PV"
    assert (listed["profile"], listed["protocol"]) == ("generic_modbus", "modbus_tcp")
    assert listed["address"] == f"127.0.0.1:{pv.port} unit 1"
    assert listed["limit_in_force"] == 40
    assert listed["writes"] == {"limit_target": 1}
    assert (listed["commands"], listed["gap_violations"], listed["sessions_refused"]) == (0, 0, 0)
    assert listed["alive_s"] is None


async def test_a_fault_is_switched_on_and_off(pv, board):
    broken = (await board.put("/devices/PV/fault", json={"fault": "delay", "delay_s": 2})).json()
    assert (broken["fault"], broken["delay_s"]) == ("delay", 2)
    assert (pv.fault, pv.delay_s) == (Fault.DELAY, 2)

    assert (await board.put("/devices/PV/fault", json={"fault": "none"})).json()["fault"] == "none"
    assert pv.fault is Fault.NONE


async def test_a_point_shows_what_it_is_told_to_until_it_is_not(pv, board):
    assert (await board.put("/devices/PV/shown", json={"power": 3.5})).status_code == 200
    pv.measure()
    assert pv.get("power") == 3.5

    assert (await board.put("/devices/PV/shown", json={"power": None})).json()["shown"] == {"power": None}
    pv.measure()
    assert pv.get("power") is None

    await board.delete("/devices/PV/shown")
    pv.measure()
    assert pv.get("power") == pytest.approx(60)


async def test_a_night_falls_on_a_whole_site(pv, board):
    assert (await board.put("/devices/PV/site", json={"night": True})).json()["night"] is True
    pv.measure()
    assert pv.get("power") is None

    await board.put("/devices/PV/site", json={"night": False})
    assert pv.machine.site.night is False


async def test_a_restart_forgets_a_volatile_limit(pv, board):
    pv.registers.set("limit_target", 40)
    pv.wrote(["limit_target"])

    assert (await board.post("/devices/PV/restart")).json()["limit_in_force"] == 100


@pytest.mark.parametrize(
    ("asked", "body", "refused"),
    [
        ("GET /devices/NONE", "", "404 no device 'NONE'"),
        ("GET /nothing", "", "404 Not Found"),
        ("POST /devices/PV/fault", "{}", "405 Method Not Allowed"),
        ("PUT /devices/PV/fault", '{"fault": "dragon"}', "400 Invalid enum value 'dragon' - at `$.fault`"),
        ("PUT /devices/PV/fault", '{"fault": "drop", "delays": 1}', "400 Object contains unknown field `delays`"),
        ("PUT /devices/PV/fault", "drop", "400 JSON is malformed: invalid character (byte 0)"),
        ("PUT /devices/PV/fault", '{"fault": "delay", "delay_s": -1}', "400 delay_s: expected 0 to 3600 seconds"),
        ("PUT /devices/PV/shown", '{"limit_target": 1}', "400 'limit_target' is not telemetry of PV: power"),
        ("PUT /devices/PV/site", '{"night": "yes"}', "400 Expected `bool`, got `str` - at `$.night`"),
        ("PUT /devices/PV/shown", '{"power": 1e9}', "400 power: raw value 1000000000000 is outside"),
    ],
)  # fmt: skip
async def test_what_cannot_be_done_is_refused_with_a_reason(board, pv, asked, body, refused):
    answer = await board.request(*asked.split(), content=body)

    assert f"{answer.status_code} {answer.json()['error']}".startswith(refused)
    assert (pv.fault, pv.shown) == (Fault.NONE, {})


async def test_an_observer_shows_a_device_and_takes_no_orders(pv):
    observer = Observer(pv, tag="PV")
    await observer.start()
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{observer.port}") as client:
            assert (await client.get("/")).json()["limit_in_force"] == 100
            assert (await client.put("/", json={})).status_code == 405
    finally:
        await observer.stop()


def entry(tag: str, **fields) -> FleetDevice:
    return FleetDevice(**{"tag": tag, "profile": "generic_modbus", "nameplate_kw": 60, **fields})


def sungrow(tag: str, **fields) -> FleetDevice:
    return entry(tag, profile="sungrow_sg110cx", **fields)


def fleet(*devices: FleetDevice) -> SimulatedFleet:
    return build_fleet(Fleet(devices=list(devices)))


@pytest.mark.parametrize(
    ("devices", "reason"),
    [
        ([entry("A"), entry("A")], "A: there are two of this tag"),
        (
            [entry("A", protocol="mqtt")],
            "A: generic_modbus is reached by modbus_tcp, modbus_rtu, not by 'mqtt'",
        ),
        ([entry("A", parameters={"x": 1})], "A: .*parameters.x"),
        (
            [entry("A", line="w", profile="sma_stp60_im20")],
            "A: sma_stp60_im20 is reached by modbus_tcp, not by 'modbus_rtu'",
        ),
        ([sungrow("A", protocol="modbus_rtu")], "A: a line and modbus_rtu go together"),
        ([sungrow("A", line="w"), sungrow("B", line="w")], "B: unit 1 of line 'w' is taken"),
        ([sungrow("A", line="w", port=1), sungrow("B", line="w", port=2)], "B: line 'w' is at 127.0.0.1:1"),
    ],
)
def test_devices_that_do_not_fit_are_named(devices, reason):
    with pytest.raises(FleetError, match=reason):
        fleet(*devices)


async def test_a_fleet_says_whose_port_is_taken_and_can_still_be_stopped(pv):
    simulated = fleet(entry("FIRST"), entry("SECOND", port=pv.port))
    try:
        with pytest.raises(FleetError, match=r"SECOND: .*address already in use"):
            await simulated.start()
    finally:
        await simulated.stop()


async def test_devices_of_a_line_answer_rtu_on_its_port():
    simulated = fleet(sungrow("A", line="west"), sungrow("B", line="west", unit=2))
    await simulated.start()
    try:
        line = simulated.lines["west"]
        assert {device.address for device in simulated.devices.values()} == {
            f"127.0.0.1:{line.port} unit 1", f"127.0.0.1:{line.port} unit 2",
        }  # fmt: skip
        client = AsyncModbusTcpClient(
            "127.0.0.1", port=line.port, framer=FramerType.RTU, timeout=5, retries=0
        )
        assert await client.connect()
        for unit in (1, 2):
            power = await client.read_input_registers(5030, count=2, device_id=unit)
            assert power.registers[0] > 0
        client.close()
    finally:
        await simulated.stop()


async def test_a_fleet_with_a_control_port_has_its_devices_on_its_switchboard():
    simulated = fleet(entry("A"), entry("B"))
    assert simulated.switchboard is None

    board = SimulatedFleet(control_port=0)
    board.devices.update(simulated.devices)
    await board.start()
    try:
        assert board.switchboard is not None
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{board.switchboard.port}") as client:
            assert [one["tag"] for one in (await client.get("/devices")).json()] == ["A", "B"]
    finally:
        await board.stop()
