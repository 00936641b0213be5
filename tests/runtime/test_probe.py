"""A probe at the site: on the command line, and over the link with the lines that the node has."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from edge.profiles.loader import load_all, load_bodies
from edge.profiles.reading import profile_to_builtins
from edge.runtime.probe import main
from edge.simulators.device import Fault
from edge.simulators.modbus import SimulatedDevice
from edge.simulators.modbus_rtu import SimulatedLine
from edge.simulators.xml_da import SimulatedXmlDa
from edge.wire.messages import Code, CommandAnswer, ProbeCommand, ProbeReport, Verdict
from tests.runtime.plant import NAMEPLATE_KW, profile
from tests.runtime.test_link import LIMIT, A, Rig, rigged
from tests.servers import Broker

PARK = {"id": "park", "tag": "PARK_01", "category": "park", "profile": "proxy_device"}

# --- on the command line --------------------------------------------------------------------------


async def probe(*arguments: object, capsys: Any) -> tuple[int, str]:
    """`python -m edge probe` with these; its exit code and what it says."""
    # In a thread: the simulated devices live in this one's loop.
    code = await asyncio.to_thread(main, [str(argument) for argument in arguments])
    said = capsys.readouterr()
    return code, said.out + said.err


def as_file(body: dict[str, Any], directory: Path) -> Path:
    path = directory / f"{body['name']}.yaml"
    path.write_text(yaml.safe_dump(body))
    return path


def without_pauses(name: str) -> dict[str, Any]:
    return {**load_bodies()[name], "min_gap_ms": 0}


@pytest.fixture
def sungrow(tmp_path: Path) -> Path:
    """A profile that recognises its device and knows where its rated power is."""
    return as_file(without_pauses("sungrow_sg110cx"), tmp_path)


@pytest.fixture
async def inverter() -> AsyncIterator[SimulatedDevice]:
    device = SimulatedDevice(profile=profile("sungrow_sg110cx", min_gap_ms=0), unit=1, nameplate_kw=110)
    await device.start()
    yield device
    await device.stop()


@pytest.mark.parametrize("nameplate", [110, 1100])
async def test_table_names_each_point_as_its_maker_does_and_says_what_to_do(
    inverter, sungrow, capsys, nameplate
):
    code, said = await probe(
        "--profile", sungrow, "127.0.0.1", "--port", inverter.port, "--nameplate-kw", nameplate, capsys=capsys
    )  # fmt: skip

    kind = inverter.profile
    assert kind.identity.nameplate is not None
    rated = kind.points[kind.identity.nameplate]
    row = next(line for line in said.splitlines() if f"rated power: {rated.name}" in line)
    assert rated.doc in row
    assert "110 kW" in row
    if nameplate == 110:
        assert (code, row.startswith("ok")) == (0, True)
    else:
        assert (code, row.startswith("FAILED"), "factor 10?" in row) == (1, True, True)
    assert "nothing was written" in said.splitlines()[-1]
    assert inverter.writes.total() == 0


async def test_report_as_json_is_the_one_of_the_wire(inverter, sungrow, capsys):
    code, said = await probe(
        "--profile", sungrow, "127.0.0.1", "--port", inverter.port, "--json", capsys=capsys
    )
    report = json.loads(said)
    assert code == 0
    assert (report["profile"], report["where"]) == ("sungrow_sg110cx", f"127.0.0.1:{inverter.port} unit 1")
    assert {line["part"] for line in report["lines"]} >= {"identity", "rated power", "telemetry", "answers"}


async def test_device_that_does_not_answer_has_an_exit_code_of_its_own(inverter, sungrow, capsys):
    await inverter.stop()
    code, said = await probe("--profile", sungrow, "127.0.0.1", "--port", inverter.port, capsys=capsys)
    assert code == 69
    assert "Connection refused" in said


async def test_device_on_a_serial_port_is_probed_there(tmp_path, capsys):
    body = {**load_bodies()["generic_modbus"], "name": "on_a_line", "also": ["modbus_rtu"]}
    line = SimulatedLine(baud_rate=19200, turnaround_s=0.001)
    device = SimulatedDevice(profile=profile(), unit=3, nameplate_kw=60, on_line=True)
    line.add(device)
    await line.start()
    try:
        code, said = await probe(
            "--profile", as_file(body, tmp_path), "--serial-port", line.path, "--baud-rate", 19200, "--unit", 3,
            capsys=capsys,
        )  # fmt: skip
    finally:
        await line.stop()
    assert code == 0, said
    assert f"{line.path} unit 3" in said
    assert device.writes.total() == 0


async def test_device_behind_a_url_is_probed_there(capsys):
    kind = load_all()["xml_da_device"]
    device = SimulatedXmlDa(profile=kind, nameplate_kw=60)
    await device.start()
    # What the simulated one has is what its profile gives as examples.
    items = [
        argument
        for name, parameter in kind.parameters.items()
        if parameter.required
        for argument in ("--set", f"{name}={parameter.example}")
    ]
    try:
        code, said = await probe(
            "--profile", kind.name, "--url", device.url, "--nameplate-kw", 60, *items, capsys=capsys
        )
    finally:
        await device.stop()
    assert code == 0, said
    assert device.url in said
    assert device.writes.total() == 0


async def test_parameters_are_those_of_the_command_line(tmp_path, capsys):
    file = as_file(load_bodies()["generic_modbus"], tmp_path)
    device = SimulatedDevice(profile=profile("generic_modbus"), unit=1, nameplate_kw=60)
    await device.start()
    try:
        arguments = ["--profile", file, "127.0.0.1", "--port", device.port]
        _, elsewhere = await probe(*arguments, "--set", "power_address=5000", capsys=capsys)
        _, there = await probe(*arguments, "--set", "power_address=51", capsys=capsys)
    finally:
        await device.stop()
    assert "it has no such register" in elsewhere
    assert "it has no such register" not in there


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--profile", "no_such", "host"], "there are: "),
        (["--profile", "generic_modbus"], "expected a name or an address"),
        (["--profile", "generic_modbus", "host", "--port", "99999"], "expected 1 to 65535"),
        (["--profile", "generic_modbus", "host", "--set", "x=1"], "no such parameter"),
        (["--profile", "generic_modbus", "host", "--set", "x"], "expected NAME=VALUE"),
        (["--profile", "generic_modbus", "host", "--protocol", "mqtt"], "expected one of modbus_tcp"),
        (["--profile", "generic_modbus", "host", "--password-file", "/no/such/file"], "No such file"),
        (["--profile", "proxy_device"], "nothing but the devices behind it"),
    ],
)
def test_question_that_cannot_be_put_is_told_with_what_is_expected(arguments, said, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


# --- over the link --------------------------------------------------------------------------------


@pytest.fixture
async def rig(broker: Broker, tmp_path: Path) -> AsyncIterator[Rig]:
    """A node that controls a device which takes one connection."""
    async with rigged(broker, tmp_path) as rig:
        rig.device.profile = msgspec.structs.replace(rig.device.profile, max_sessions=1)
        rig.start()
        await rig.central.configured(rig.body)
        yield rig
        assert rig.device.sessions_refused == 0


async def ask(rig: Rig, *, fresh: str | None = None, **fields: Any) -> str:
    command = ProbeCommand(
        id=fields.pop("id", None) or uuid.uuid4().hex,
        epoch=fields.pop("epoch", 1),
        fresh=await rig.central.token() if fresh is None else fresh,
        **fields,
    )
    await rig.central.send("probe", command)
    return command.id


async def probed(rig: Rig, **fields: Any) -> ProbeReport:
    answer = await rig.central.expect_answer(await ask(rig, **fields), "done")
    assert answer.probe is not None
    return answer.probe


async def refused(rig: Rig, **fields: Any) -> CommandAnswer:
    return await rig.central.expect_answer(await ask(rig, **fields), "refused")


def candidate(rig: Rig, **changes: Any) -> dict[str, Any]:
    """A device that this node does not have, by default at the place of the one it has."""
    return {
        "candidate": {**rig.body["devices"][0], "id": "new", "tag": "NEW", **changes},
        "profile": profile_to_builtins(rig.device.profile),
    }


async def test_device_of_the_node_is_probed_over_the_connection_that_it_has(rig):
    report = await probed(rig, device=A)

    assert report.where == f"127.0.0.1:{rig.device.port} unit 1"
    assert {line.key for line in report.lines if line.key} == {"P_kW"}
    assert rig.device.writes[LIMIT] == 0


async def test_candidate_at_the_place_of_a_device_shares_its_connection(rig):
    report = await probed(rig, **candidate(rig, nameplate_kw=600.0))

    assert report.verdict is Verdict.WARNING
    assert not any("no answer" in line.detail for line in report.lines)


async def test_candidate_elsewhere_is_probed_over_a_connection_that_is_closed_again(rig):
    other = SimulatedDevice(
        profile=profile("sungrow_sg110cx", min_gap_ms=0), unit=1, nameplate_kw=NAMEPLATE_KW
    )
    await other.start()
    try:
        report = await probed(
            rig,
            candidate={**candidate(rig, port=other.port)["candidate"], "profile": "sungrow_sg110cx"},
            profile=without_pauses("sungrow_sg110cx"),
        )
        async with asyncio.timeout(5):
            while other._sessions:  # noqa: ASYNC110 - the device has no event for it
                await asyncio.sleep(0)
    finally:
        await other.stop()
    assert report.verdict is not Verdict.FAILED
    assert other.writes.total() == 0


async def test_candidate_that_is_simulated_in_the_node_gets_a_plant_of_its_own(rig):
    body = load_bodies()["demo_inverter"]
    demo = {
        "id": "demo",
        "tag": "DEMO_01",
        "category": "inverter",
        "profile": "demo_inverter",
        "nameplate_kw": 50.0,
    }
    config = rig.body
    config["devices"].append(demo)
    config["profiles"]["demo_inverter"] = body
    await rig.central.configured(config)

    here = await probed(rig, device="demo")
    another = await probed(rig, candidate={**demo, "id": "new", "tag": "DEMO_02"}, profile=body)

    assert (here.verdict, here.where) == (another.verdict, another.where) == (Verdict.WARNING, "demo")


async def test_proxy_is_nothing_to_look_at(rig):
    proxy = {"id": "p", "tag": "PROXY", "category": "inverter", "profile": "proxy_device"}
    answer = await refused(rig, candidate=proxy, profile=load_bodies()["proxy_device"])
    assert (answer.code, "the devices behind it" in answer.detail) == (Code.UNUSABLE, True)


async def test_setpoint_is_written_while_a_probe_waits_for_a_device_that_does_not_answer(rig):
    probing = await ask(rig, **candidate(rig, unit=99))
    await rig.central.expect_answer(probing, "accepted")

    command = await rig.central.setpoint(INVERTER_01=30)

    done = await rig.central.expect_answer(command, "done")
    assert done.devices[A].readback == 30
    report = (await rig.central.expect_answer(probing, "done")).probe
    assert report is not None
    assert report.verdict is Verdict.FAILED


async def test_second_probe_is_refused_while_one_is_under_way(rig):
    await rig.device.set_fault(Fault.SILENT)
    token = await rig.central.token()
    # One right after the other: the first ends with the device's timeout, whoever of us is slow.
    first = await ask(rig, device=A, fresh=token)
    second = await ask(rig, device=A, fresh=token)

    assert (await rig.central.expect_answer(second, "refused")).code == Code.BUSY
    await rig.central.expect_answer(first, "accepted")

    await rig.central.expect_answer(first, "done")
    await rig.device.set_fault(Fault.NONE)
    assert (await probed(rig, device=A)).verdict is Verdict.WARNING


async def test_same_probe_again_repeats_its_answer_and_asks_the_device_nothing(rig):
    first = await rig.central.expect_answer(await ask(rig, device=A, id="twice"), "done")
    rig.central.heard.clear()

    await ask(rig, device=A, id="twice", fresh="whatever")

    assert await rig.central.expect_answer("twice", "done") == first


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"device": A, "fresh": "of another node"}, Code.STALE),
        ({"device": "no such id"}, Code.UNKNOWN_DEVICE),
        ({}, Code.UNUSABLE),
        ({"candidate": {"tag": 7}, "profile": {}}, Code.UNUSABLE),
        ({"candidate": {}, "profile": {"name": "x"}}, Code.UNUSABLE),
        ({"device": A, "epoch": 0}, Code.OLD_EPOCH),
        ({"candidate": PARK, "profile": load_bodies()["proxy_device"]}, Code.UNUSABLE),
    ],
)
async def test_probe_that_cannot_be_is_refused_and_the_node_goes_on(rig, fields, code):
    assert (await refused(rig, **fields)).code == code
    assert (await probed(rig, device=A)).lines


async def test_candidate_on_a_line_that_is_used_otherwise_is_refused(rig):
    body = {**candidate(rig)["profile"], "also": ["modbus_rtu"]}
    answer = await refused(rig, candidate=candidate(rig, protocol="modbus_rtu")["candidate"], profile=body)
    assert (answer.code, "in use in another way" in answer.detail) == (Code.UNUSABLE, True)


async def test_node_without_a_configuration_probes_nothing(broker: Broker, tmp_path: Path):
    async with rigged(broker, tmp_path) as rig:
        rig.start()
        answer = await refused(rig, **candidate(rig))
    assert (answer.code, "no configuration yet" in answer.detail) == (Code.UNUSABLE, True)
