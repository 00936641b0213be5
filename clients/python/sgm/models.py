"""What the API tells of, as frozen objects; names are the API's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any

from sgm.decoding import Model


@dataclass(frozen=True, kw_only=True)
class Version(Model):
    alembic_version: str
    git_version: str


@dataclass(frozen=True, kw_only=True)
class NodeHealth(Model):
    tenant_tag: str
    site_tag: str
    node_name: str
    healthy: bool


@dataclass(frozen=True, kw_only=True)
class Metric(Model):
    key: str
    value: float
    timestamp: datetime


@dataclass(frozen=True, kw_only=True)
class Site(Model):
    """`curtailment_time_limit`: how many seconds a request holds. `metrics` stand in a single site only."""

    id: str
    created_at: datetime
    site_tag: str
    name: str
    curtailment_time_limit: int
    meta_data: Any = None
    metrics: tuple[Metric, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Node(Model):
    """`configuration` stands in a single node only."""

    id: str
    created_at: datetime
    polaris_node_name: str
    site_id: str
    curtail_in_batch: bool
    iothub: str
    meta_data: Any = None
    configuration: Any = None


@dataclass(frozen=True, kw_only=True)
class Device(Model):
    """`value` is the last one that its node confirmed, None before. A single device has its address too."""

    id: str
    created_at: datetime
    device_tag: str
    node_id: str
    device_type_id: str
    max_value: float
    min_value: float
    default_value: float
    value: float | None
    include_in_curtailment: bool
    category: str
    peak_power_kw: float | None
    meta_data: Any = None
    modbus_server_host: str | None = None
    modbus_server_port: int | None = None
    modbus_id: int | None = None


@dataclass(frozen=True, kw_only=True)
class ControlResult(Model):
    """`not_updated` says for each tag why not, beginning with a code: `node_offline: ...`."""

    updated: Mapping[str, Any]
    not_updated: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Wear(Model):
    """What a value would cost the register it goes to, in writes: `now`, and for the `release` after it."""

    write_class: str
    wears: bool
    now: int
    release: int
    today: int
    per_day: int | None = None


@dataclass(frozen=True, kw_only=True)
class DevicePreview(Model):
    """What a request would do to one device, as its node says; `reason` is all of it in one sentence.

    `code` says why it would be refused; None: it would not. `write` says why it would be written at all.
    """

    code: str | None
    detail: str
    value: float | None
    reason: str
    target: float | None = None
    wish: float | None = None
    bounded_by: str | None = None
    source: str | None = None
    through: str | None = None
    holds_s: float | None = None
    write: str | None = None
    in_force: float | None = None
    in_force_reason: str = ""
    reachable: bool | None = None
    wear: Wear | None = None


@dataclass(frozen=True, kw_only=True)
class ControlAnswer(Model):
    """What became of a request: `status` is `success`, `partial` or `failed`.

    `preview` tells by device what a dry run would do; `is_replay` that this is the answer to the same request
    sent before.
    """

    status: str
    result: ControlResult
    dry_run: bool = False
    preview: Mapping[str, DevicePreview] = field(default_factory=dict)
    request_id: str = ""
    idempotency_key: str = ""
    is_replay: bool = False

    @property
    def is_done(self) -> bool:
        return self.status == "success"


@dataclass(frozen=True, kw_only=True)
class ControlLog(Model):
    """`watchdog`: the node fell back by itself. `value` is None where there was none, as for a release."""

    id: str
    created_at: datetime
    site_id: str
    status: str
    category: str
    watchdog: bool
    value: float | None
    result: ControlResult

    @property
    def tags(self) -> frozenset[str]:
        return frozenset(self.result.updated) | frozenset(self.result.not_updated)


@dataclass(frozen=True, kw_only=True)
class ErrorDetail(Model):
    timestamp: datetime
    error: str


@dataclass(frozen=True, kw_only=True)
class DeviceErrors(Model):
    total_errors: int
    error_details: tuple[ErrorDetail, ...]


@dataclass(frozen=True, kw_only=True)
class SiteErrors(Model):
    site_name: str
    devices: Mapping[str, DeviceErrors]
    site_id: str = ""


@dataclass(frozen=True, kw_only=True)
class Schedule(Model):
    """`schedule`: value by quarter hour of UTC, `09:15`; None or absent is the default.

    `synchronization_result` is None until all nodes of the site have answered.
    """

    id: str
    site_id: str
    category: str
    valid_on: date
    schedule: Mapping[str, float | None]
    synchronization_result: Mapping[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class ManagementToken(Model):
    id: str
    name: str
    token: str | None = field(repr=False, default=None)
    sites: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Point(Model):
    """One reading, or the mean of an interval with its extremes and how many readings it is made of."""

    timestamp: datetime
    value: float | None
    minimum: float | None = None
    maximum: float | None = None
    count: int | None = None
    quality: Any = None


@dataclass(frozen=True, kw_only=True)
class Series(Model):
    """One key of one device, or of a node; `name` is the device's tag, or the node's name."""

    key: str
    name: str
    unit: str
    points: tuple[Point, ...]
    device_id: str | None = None
    node_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class Telemetry(Model):
    begins: datetime = field(metadata={"key": "from"})
    ends: datetime = field(metadata={"key": "to"})
    resolution: str
    series: tuple[Series, ...]


@dataclass(frozen=True, kw_only=True)
class Reason(Model):
    """One entry of a node's ring of reasons; `text` says all of it, for people."""

    at: datetime
    kind: str
    text: str
    who: str = ""
    value: float | None = None
    source: str | None = None
    wish: float | None = None
    bounded_by: str | None = None
    until: datetime | None = None
    because: str | None = None
    code: str | None = None
    readback: float | None = None
    request_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class Explanation(Model):
    """Why a device was held where it was at `at`; `written` is what became of the decision."""

    device_tag: str
    at: datetime
    reaches_back_to: datetime
    decision: Reason
    written: tuple[Reason, ...] = ()
    before: tuple[Reason, ...] = ()
    after: tuple[Reason, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DeviceType(Model):
    id: str
    name: str


@dataclass(frozen=True, kw_only=True)
class DeviceChange(Model):
    """A device's confirmed value is another."""

    id: str
    device_tag: str
    site_id: str
    value: float | None
    node_id: str = ""
    category: str = ""
    at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class NodeChange(Model):
    """A node came, went, or is well or unwell."""

    id: str
    polaris_node_name: str
    site_id: str
    online: bool | None = None
    healthy: bool | None = None
    at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class LoopStanding(Model):
    """How a closed loop stands, as its node told `age_s` ago. Power in kW, positive towards the grid.

    `stand` is `tracking`, `limiting`, `stale`, `fallback` or `manual`.
    """

    stand: str
    since: datetime
    setpoint_kw: float | None
    measured_kw: float | None
    output_kw: float | None
    load_kw: float | None
    bounded_by: str
    reason: str
    age_s: float


@dataclass(frozen=True, kw_only=True)
class LoopStandChange(Model):
    """A loop came to stand otherwise: `since` by its node's clock."""

    stand: str
    since: datetime
    reason: str = ""
    bounded_by: str = ""
    setpoint_kw: float | None = None
    measured_kw: float | None = None
    output_kw: float | None = None


@dataclass(frozen=True, kw_only=True)
class LoopMember(Model):
    """`value`: what the loop wants of it now, in percent."""

    device_id: str
    device_tag: str
    nominal_kw: float
    value: float | None


@dataclass(frozen=True, kw_only=True)
class LoopNode(Model):
    """`healthy` is None where nobody can tell now."""

    id: str
    polaris_node_name: str
    online: bool
    healthy: bool | None


@dataclass(frozen=True, kw_only=True)
class Loop(Model):
    """A closed loop; all that can be set of it is in `raw`.

    `live` is None where its node has told nothing lately, `refused` why that cannot use it. `left_out` says
    by tag why devices are no members. `changes` are the last changes of its stand, the newest first.
    """

    id: str
    site_id: str
    loop_tag: str
    enabled: bool
    meter_id: str
    category: str | None
    mode: str
    setpoint_kw: float | None
    export_limit_kw: float | None
    import_limit_kw: float | None
    nominal_kw: float
    members: tuple[LoopMember, ...]
    left_out: Mapping[str, str]
    refused: str | None
    node: LoopNode
    live: LoopStanding | None
    changes: tuple[LoopStandChange, ...]


@dataclass(frozen=True, kw_only=True)
class LoopChange(Model):
    """A closed loop came to stand otherwise, as an event tells it."""

    id: str
    loop_tag: str
    site_id: str
    stand: str
    reason: str = ""
    node_id: str = ""
    since: datetime | None = None
    at: datetime | None = None
