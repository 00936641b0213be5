"""One message of every kind, as the golden files hold it."""

from __future__ import annotations

from pathlib import Path

from edge.wire.codec import document
from edge.wire.enrolment import Challenge, ConfirmRequest, EnrolRequest, Issued, RenewRequest
from edge.wire.messages import (
    Alarm,
    AppliedDocument,
    Code,
    CommandAnswer,
    DevicePreview,
    DeviceResult,
    ExplainCommand,
    Explanation,
    Gap,
    Heartbeat,
    LogAck,
    LogBatch,
    LogEntry,
    LoopStatus,
    Manifest,
    ManifestEntry,
    Message,
    PingClosing,
    PingCommand,
    Presence,
    PreviewCommand,
    PreviewWear,
    ProbeCommand,
    ProbeLine,
    ProbeReport,
    ReasonEntry,
    ReleaseCommand,
    Reported,
    ResyncCommand,
    SetpointCommand,
    Stage,
    TelemetryBatch,
    TelemetryPoint,
    Verdict,
    Writes,
)

GOLDEN = Path(__file__).parent / "golden"

COMMAND = "0d7bd8f4-6b1c-4f0e-9d57-0a8f7c0f7d11"
REQUEST = "9b0b9c0e-4f6e-4a55-8d4b-5a0f5d9a7c21"
SESSION = "3f0f7c52-7a43-4e0b-9a3a-1f2d3c4b5a69"
BOOT = "b7f1c8de-2a90-4d8f-8a0e-6c5d4e3f2a1b"
STORE = "6a1d2e3f-4b5c-4d6e-8f7a-0b1c2d3e4f5a"
SHA = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"

CONFIG_BODY = {
    "site": {
        "id": "01751407-d87b-4d89-b47f-cca4dfb85a92",
        "tag": "solarpanel_site_a",
        "curtailment_time_limit_s": 60.0,
        "cyclic_write_timeout_s": 300.0,
        "time_zone": "Europe/Amsterdam",
    },
    "devices": [
        {
            "id": "5a0f5d9a-0d7b-4f6e-8d4b-9b0b9c0e7c21",
            "tag": "SMA_STP60_01",
            "category": "inverter",
            "profile": "sma_stp60",
            "host": "127.0.0.1",
            "port": 1502,
            "unit": 3,
            "nameplate_kw": 60.0,
        }
    ],
    "profiles": {"sma_stp60": {"protocol": "modbus_tcp"}},
}
SCHEDULE_BODY = {
    "date": "2026-03-02",
    "category": "inverter",
    "slots": {"10:00": 70.0, "10:15": None, "23:45": 0.0},
}

SAMPLES: dict[str, Message] = {
    "setpoint": SetpointCommand(
        id=COMMAND,
        epoch=1,
        sequence=42,
        fresh="q7Zb1x",
        request_id=REQUEST,
        category="inverter",
        values={"SMA_STP60_01": 30.0, "SMA_STP60_02": 62.5},
        hold_s=60.0,
        reason="congestion",
    ),
    "release": ReleaseCommand(
        id=COMMAND,
        epoch=1,
        sequence=43,
        fresh="q7Zb1x",
        request_id=REQUEST,
        category="inverter",
        devices=("SMA_STP60_01", "SMA_STP60_02"),
    ),
    "ping": PingCommand(id=COMMAND, epoch=1, sent_wall="2026-03-02T10:00:00.000000Z"),
    "ping_closing": PingCommand(
        id=COMMAND,
        epoch=1,
        sent_wall="2026-03-02T10:01:00.000000Z",
        closing=PingClosing(id=REQUEST, heard_wall="2026-03-02T10:00:00.021000Z"),
    ),
    "resync": ResyncCommand(id=COMMAND, epoch=1),
    "explain": ExplainCommand(id=COMMAND, epoch=1, device="SMA_STP60_01", at="2026-03-02T10:00:30Z"),
    "probe": ProbeCommand(id=COMMAND, epoch=1, fresh="r8Yc2w", device="5a0f5d9a-0d7b-4f6e-8d4b-9b0b9c0e7c21"),
    "probe_candidate": ProbeCommand(
        id=COMMAND,
        epoch=1,
        fresh="r8Yc2w",
        candidate=CONFIG_BODY["devices"][0],  # type: ignore[index]
        profile={"name": "generic_modbus"},
    ),
    "preview": PreviewCommand(
        id=COMMAND,
        epoch=1,
        category="inverter",
        values={"SMA_STP60_01": 20.0, "SMA_STP60_02": 20.0},
        hold_s=60.0,
    ),
    "answer_accepted": CommandAnswer(id=COMMAND, stage=Stage.ACCEPTED),
    "answer_done": CommandAnswer(
        id=COMMAND,
        stage=Stage.DONE,
        devices={
            "SMA_STP60_01": DeviceResult(value=30.0, readback=30.1, holds_s=60.0),
            "SMA_STP60_02": DeviceResult(
                code=Code.WRITE_FAILED,
                detail="no answer; still trying until 10:53:55Z, release to cancel",
                value=62.5,
                holds_s=60.0,
            ),
            "SMA_STP60_03": DeviceResult(code=Code.EXCLUDED),
        },
    ),
    "answer_refused": CommandAnswer(
        id=COMMAND, stage=Stage.REFUSED, code=Code.STALE, detail="token of 16 s ago", fresh="r8Yc2w"
    ),
    "answer_ping": CommandAnswer(
        id=COMMAND,
        stage=Stage.DONE,
        fresh="r8Yc2w",
        sent_wall="2026-03-02T10:00:00.000000Z",
        received_wall="2026-03-02T10:00:00.010000Z",
        answered_wall="2026-03-02T10:00:00.011000Z",
    ),
    "answer_probe": CommandAnswer(
        id=COMMAND,
        stage=Stage.DONE,
        probe=ProbeReport(
            profile="generic_modbus",
            title="Generic Modbus inverter or plant controller",
            where="192.168.1.100:502 unit 1",
            at="2026-03-02T10:00:30.000000Z",
            took_s=0.041,
            verdict=Verdict.WARNING,
            lines=[
                ProbeLine(
                    part="identity",
                    verdict=Verdict.WARNING,
                    detail="the profile knows nothing by which to recognise the device",
                ),
                ProbeLine(
                    part="telemetry",
                    verdict=Verdict.OK,
                    key="P_kW",
                    point="power",
                    name="active power",
                    doc="51",
                    value=12.5,
                    unit="kW",
                ),
            ],
        ),
    ),
    "answer_preview": CommandAnswer(
        id=COMMAND,
        stage=Stage.DONE,
        previews={
            "SMA_STP60_01": DevicePreview(
                value=70.0,
                target=30.0,
                source="direct",
                wish=20.0,
                bounded_by="grid_operator",
                reason=(
                    "SMA_STP60_01 at 70 by direct, on its ramp to 30, asked for 20, bounded by grid_operator,"
                    " until 2026-03-02T10:01:00Z; under it default 100; bounds: device 0 to 100, grid_operator"
                    " 30 to inf"
                ),
                holds_s=60.0,
                write="changed",
                in_force=100.0,
                in_force_reason=(
                    "SMA_STP60_01 at 100 by default; bounds: device 0 to 100, grid_operator 30 to inf"
                ),
                reachable=True,
                wear=PreviewWear(write_class="volatile", wears=False, now=1, release=1, today=12),
            ),
            "SMA_STP60_02": DevicePreview(
                code=Code.WEAR,
                detail=(
                    "19 of 20 writes of today are spent, the rest is kept for releases; the count begins anew at"
                    " 00:00Z"
                ),
                in_force=100.0,
                in_force_reason="SMA_STP60_02 at 100 by default; bounds: device 0 to 100",
                reachable=True,
                wear=PreviewWear(
                    write_class="persistent", wears=True, now=0, release=0, today=19, per_day=20
                ),
            ),
        },
    ),
    "answer_explain": CommandAnswer(
        id=COMMAND,
        stage=Stage.DONE,
        explanation=Explanation(
            device="SMA_STP60_01",
            at="2026-03-02T10:00:30.000000Z",
            reaches_back_to="2026-03-01T10:00:00.000000Z",
            decision=ReasonEntry(
                at="2026-03-02T10:00:00.015000Z",
                kind="decision",
                who="node",
                text=(
                    f"SMA_STP60_01 at 30 by direct request {REQUEST}, asked for 20, bounded by grid_operator,"
                    " until 2026-03-02T10:01:00Z; under it schedule 70 until 2026-03-02T10:15:00Z; under it"
                    " default 100; bounds: device 0 to 100, grid_operator 30 to inf; it held until"
                    " 2026-03-02T10:01:00.002Z"
                ),
                value=30.0,
                source="direct",
                wish=20.0,
                bounded_by="grid_operator",
                request_id=REQUEST,
                until="2026-03-02T10:01:00.000000Z",
            ),
            written=[
                ReasonEntry(
                    at="2026-03-02T10:00:00.020000Z",
                    kind="outcome",
                    who="node",
                    text="30 confirmed, read back 30.1",
                    value=30.0,
                    readback=30.1,
                )
            ],
            after=[
                ReasonEntry(
                    at="2026-03-02T10:01:00.310000Z",
                    kind="outcome",
                    who="node",
                    text="70 not confirmed: write_failed: no answer",
                    value=70.0,
                    code=Code.WRITE_FAILED,
                )
            ],
            notes=["the wall clock was set by -3600.0 s, to 2026-03-02T09:00:00.000Z"],
        ),
    ),
    "presence_online": Presence(
        online=True, session=SESSION, boot=BOOT, sw="0.1.0", versions=(1,), fresh="q7Zb1x"
    ),
    "presence_will": Presence(online=False, session=SESSION, boot=BOOT, sw="0.1.0", versions=(1,)),
    "heartbeat": Heartbeat(
        session=SESSION,
        seq=17,
        mono_ms=123456,
        wall="2026-03-02T10:00:05.000000Z",
        fresh="q7Zb1x",
        loops=(
            LoopStatus(
                id="e7b1f0d4-5a52-4c0e-8f5b-1c9f6d0a7a10",
                tag="GRID",
                stand="limiting",
                since="2026-03-02T09:58:11.000000Z",
                setpoint_kw=40.0,
                measured_kw=39.2,
                output_kw=130.0,
                load_kw=90.8,
                bounded_by="connection limit",
                reason="holds 40 kW of export: load is 90.8 kW",
                members={"SMA_STP60_01": 86.0},
            ),
        ),
    ),
    "reported": Reported(
        session=SESSION,
        boot=BOOT,
        store=STORE,
        mono_ms=5_025_000,
        epoch=1,
        manifest_version=9,
        at="2026-03-02T10:00:05.000000Z",
        clock="holdover",
        clock_bound_s=0.25,
        sequences={"SMA_STP60_01": 42},
        values={"SMA_STP60_01": 60.0},
        documents={
            "config": AppliedDocument(v=7, status="applied", digest="9f86d081884c7d65"),
            "schedule/2026-03-02/inverter": AppliedDocument(v=2, status="failed", error="hash differs"),
        },
        devices_refused={"SMA_STP60_09": "profile sma_stp99 is not known"},
        loops_refused={"GRID": "its meter METER_01 is not a device of this node"},
        retiring={"0b6d9a51-6c1f-4a43-9d3f-5a1c7e2b8f90": "SMA_STP60_07: no answer"},
        wear={"SMA_STP60_01": {"power_limit": Writes(today=16, ever=2040)}},
        alarms=(
            Alarm(
                code="wear",
                detail="16 of 20 writes of today are spent",
                since="2026-03-02T09:30:00.000000Z",
                device="SMA_STP60_01",
            ),
        ),
    ),
    "telemetry": TelemetryBatch(
        points=[
            TelemetryPoint(
                t="2026-03-02T10:00:05.000000Z",
                key="P_Actual_kW",
                value=41.5,
                unit="kW",
                device="SMA_STP60_01",
            ),
            TelemetryPoint(
                t="2026-03-02T10:00:05.000000Z", key="V_Wind_m/s", value=7.25, unit="m/s", q="stale"
            ),
        ]
    ),
    "log": LogBatch(
        stream="control",
        store=STORE,
        first=5,
        last=6,
        entries=[
            LogEntry(
                seq=5,
                at="2026-03-02T10:00:00.020000Z",
                kind="result",
                category="inverter",
                value=30.0,
                command_id=COMMAND,
                request_id=REQUEST,
                sequence=42,
                devices={"SMA_STP60_01": DeviceResult(value=30.0, readback=30.1)},
            ),
            LogEntry(
                seq=6,
                at="2026-03-02T10:01:00.300000Z",
                kind="watchdog",
                category="inverter",
                value=100.0,
                request_id=REQUEST,
                reason="time_limit",
                devices={"SMA_STP60_01": DeviceResult(value=100.0)},
            ),
        ],
    ),
    "log_telemetry": LogBatch(
        stream="telemetry",
        store=STORE,
        first=7,
        last=8,
        entries=[
            LogEntry(
                seq=7,
                at="2026-02-20T10:00:00.000000Z",
                kind="gap",
                gap=Gap(
                    since="2026-02-20T10:00:00.000000Z", until="2026-02-23T09:59:00.000000Z", entries=4320
                ),
            ),
            LogEntry(
                seq=8,
                at="2026-02-23T10:00:00.000000Z",
                kind="points",
                points=(
                    TelemetryPoint(
                        t="2026-02-23T09:59:58.000000Z",
                        key="P_kW",
                        value=41.5,
                        unit="kW",
                        device="SMA_STP60_01",
                    ),
                ),
            ),
        ],
    ),
    "enrol": EnrolRequest(token="enr_" + "a" * 43, csr="PEM"),
    "issued": Issued(
        node=COMMAND,
        tenant="tenant-123",
        certificate="PEM",
        authority="PEM",
        broker="mqtts://broker.example.com:8883",
        broker_authority="PEM",
    ),
    "challenge": Challenge(challenge="c"),
    "renew": RenewRequest(challenge="c", fingerprint=SHA, csr="PEM", signature="c2ln"),
    "confirm": ConfirmRequest(challenge="c", fingerprint=SHA, signature="c2ln"),
    "logack": LogAck(stream="control", store=STORE, last=6),
    "manifest": Manifest(epoch=1, version=9, docs={"config": ManifestEntry(v=7, sha256=SHA)}),
    "document_config": document(CONFIG_BODY, epoch=1, version=7),
    "document_schedule": document(SCHEDULE_BODY, epoch=1, version=2),
}
