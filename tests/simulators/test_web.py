"""Simulated HTTP and XML-DA devices: they are what a fleet file says, and judge what they are asked."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator

import httpx
import pytest

from edge.profiles.loader import load_all
from edge.simulators.device import Fault
from edge.simulators.fleet import Fleet, FleetDevice, build_fleet
from edge.simulators.http_json import SimulatedHttp
from edge.simulators.xml_da import DA, ENVELOPE, SimulatedXmlDa

PROFILES = load_all()
SOAP = {"Content-Type": "text/xml"}


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(trust_env=False) as client:
        yield client


@pytest.fixture
async def server() -> AsyncIterator[SimulatedXmlDa]:
    server = SimulatedXmlDa(profile=PROFILES["xml_da_wind_turbine"], nameplate_kw=2000)
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def inverter() -> AsyncIterator[SimulatedHttp]:
    device = SimulatedHttp(
        profile=PROFILES["generic_http_inverter"], nameplate_kw=60, username="grid", password="pw"
    )
    await device.start()
    yield device
    await device.stop()


def call(body: str) -> bytes:
    return f'<e:Envelope xmlns:e="{ENVELOPE}" xmlns="{DA}"><e:Body>{body}</e:Body></e:Envelope>'.encode()


async def test_a_fleet_file_may_name_devices_on_the_web(client):
    fleet = build_fleet(
        Fleet(
            [
                FleetDevice(
                    tag="WIND",
                    profile="xml_da_wind_turbine",
                    nameplate_kw=2000,
                    parameters={"power_item": "WEC1.P"},
                ),
                FleetDevice(
                    tag="PV", profile="generic_http_inverter", nameplate_kw=60, username="a", password="b"
                ),
            ]
        )
    )
    await fleet.start()
    try:
        wind, inverter = fleet.devices["WIND"], fleet.devices["PV"]
        read = call('<Read><ItemList><Items ItemName="WEC1.P"/></ItemList></Read>')
        answer = await client.post(wind.address, content=read, headers=SOAP)
        state = await client.get(f"{inverter.address}/api/v1/state", auth=("a", "b"))
    finally:
        await fleet.stop()

    assert answer.status_code == 200
    assert "Value" in answer.text
    assert state.json()["limit"] == {"limit_pct": 100}


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"not XML", 500, "Client"),
        (call("<Dance/>"), 500, "no operation"),
        (call("<Read/>"), 500, "E_FAIL"),
        (call('<Write><ItemList><Items ItemName="x"/></ItemList></Write>'), 500, "ReturnValuesOnReply"),
        (call('<SubscriptionCancel ServerSubHandle="none"/>'), 500, "E_NOSUBSCRIPTION"),
        (call('<Browse ItemPath="nowhere"/>'), 500, "E_UNKNOWNITEMPATH"),
        (call('<Browse ContinuationPoint="x"/>'), 500, "E_INVALIDCONTINUATIONPOINT"),
        (call('<Read><ItemList><Items ItemName="x"/></ItemList></Read>'), 200, "E_UNKNOWNITEMNAME"),
        (
            call('<Read><ItemList ItemPath="p"><Items ItemName="x"/></ItemList></Read>'),
            200,
            "E_UNKNOWNITEMPATH",
        ),
    ],
)
async def test_a_server_refuses_what_it_cannot_do_by_the_codes_of_the_specification(
    client, server, body, status, words
):
    answer = await client.post(server.url, content=body, headers=SOAP)

    assert answer.status_code == status
    assert words in answer.text


@pytest.mark.parametrize(
    ("item", "written", "code"),
    [
        ("Park.ActivePower", ("double", "5"), "E_READONLY"),
        ("Park.PowerSetpoint", ("double", "-1000"), "E_RANGE"),
        ("Park.PowerSetpoint", ("string", "full"), "E_BADTYPE"),
        ("Park.PowerSetpoint", ("double", "many"), "E_BADTYPE"),
        ("Park.PowerSetpoint", ("float", "1000"), ""),
    ],
)
async def test_a_write_is_judged_by_access_type_and_range(client, server, item, written, code):
    kind, value = written
    xsi = 'xmlns:i="http://www.w3.org/2001/XMLSchema-instance" xmlns:x="http://www.w3.org/2001/XMLSchema"'
    body = call(
        f'<Write ReturnValuesOnReply="true" {xsi}><ItemList><Items ItemName="{item}">'
        f'<Value i:type="x:{kind}">{value}</Value></Items></ItemList></Write>'
    )

    answer = await client.post(server.url, content=body, headers=SOAP)

    assert (code or "Value") in answer.text
    assert ("ResultID" in answer.text) == bool(code)
    assert server.limit_in_force == (100 if code else 50)


async def test_a_clamping_server_takes_what_it_can_and_says_so(client, server):
    server.clamps = True
    xsi = 'xmlns:i="http://www.w3.org/2001/XMLSchema-instance" xmlns:x="http://www.w3.org/2001/XMLSchema"'
    body = call(
        f'<Write ReturnValuesOnReply="true" {xsi}><ItemList><Items ItemName="Park.PowerSetpoint">'
        f'<Value i:type="x:double">-50</Value></Items></ItemList></Write>'
    )

    answer = await client.post(server.url, content=body, headers=SOAP)

    assert "S_CLAMP" in answer.text
    assert server.limit_in_force == 0


async def test_a_server_is_asked_by_post_and_at_its_path(client, server):
    assert (await client.get(server.url)).status_code == 405
    assert (await client.post(server.url + "x", content=call("<GetStatus/>"))).status_code == 404


async def test_a_device_is_read_and_told_only_by_who_it_knows(client, inverter):
    path = f"{inverter.url}/api/v1/limit"
    assert (await client.put(path, content=b'{"limit_pct": 30}')).status_code == 401
    wrong = base64.b64encode(b"grid:no").decode()
    assert (await client.get(path, headers={"Authorization": f"Basic {wrong}"})).status_code == 401

    assert (await client.put(path, content=b'{"limit_pct": 30}', auth=("grid", "pw"))).status_code == 200
    assert inverter.limit_in_force == 30


@pytest.mark.parametrize(
    ("request_line", "body", "status"),
    [
        ("PUT limit", b'{"limit_pct": 130}', 422),
        ("PUT limit", b'{"limit_pct": "much"}', 422),
        ("PUT limit", b'{"cap": 30}', 404),
        ("POST limit", b'{"limit_pct": 30}', 404),
        ("GET nothing", b"", 404),
    ],
)
async def test_a_device_refuses_what_it_does_not_understand(client, inverter, request_line, body, status):
    method, path = request_line.split()
    answer = await client.request(method, f"{inverter.url}/api/v1/{path}", content=body, auth=("grid", "pw"))

    assert answer.status_code == status
    assert inverter.limit_in_force == 100


async def test_a_device_that_was_silent_is_stopped_without_waiting_for_it(client, inverter):
    await inverter.set_fault(Fault.SILENT)
    with pytest.raises(httpx.ReadTimeout):
        await client.get(f"{inverter.url}/api/v1/state", auth=("grid", "pw"), timeout=0.1)

    await inverter.set_fault(Fault.REFUSE)
    with pytest.raises(httpx.TransportError):
        await client.get(f"{inverter.url}/api/v1/state", auth=("grid", "pw"))
    await inverter.set_fault(Fault.NONE)

    assert (await client.get(f"{inverter.url}/api/v1/state", auth=("grid", "pw"))).status_code == 200
