"""Every message of the wire, frozen and versioned.

All are JSON objects with a `v` field. A reader ignores fields it does not know and refuses a version it does
not know (`codec`). Times of day are UTC, RFC 3339, with a `Z`; durations are seconds; `*_ms` are
milliseconds on the sender's boot-time clock. Values of a setpoint are in the device type's own unit, normally
percent of controllable nominal AC power.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec

WIRE_VERSION = 1
ACCEPTED_VERSIONS = (1,)

# A command must carry a token this node issued less than this long ago, on the node's own monotonic clock.
FRESH_WINDOW_S = 15.0
HEARTBEAT_PERIOD_S = 5.0
# The broker publishes a node's will this long after it lost the connection.
WILL_DELAY_S = 10
SESSION_EXPIRY_S = 30
KEEP_ALIVE_S = 15
MAXIMUM_PACKET = 4 * 1024 * 1024
RESPONSE_EXPIRY_S = 60
HEARTBEAT_EXPIRY_S = 30
TELEMETRY_EXPIRY_S = 300


class Code(StrEnum):
    """Why a command, or one device of it, was not carried out. Users read these in `not_updated`."""

    RETAINED = "retained"
    OLD_EPOCH = "old_epoch"
    STALE = "stale"
    SUPERSEDED = "superseded"
    RANGE = "range"
    EXCLUDED = "excluded"
    OWNED_BY = "owned_by"
    UNKNOWN_DEVICE = "unknown_device"
    BUSY = "busy"
    # Of a probe: what it asks for cannot be used, or cannot be reached as things are.
    UNUSABLE = "unusable"
    STORE_FAILED = "store_failed"
    WEAR = "wear"
    WRITE_FAILED = "write_failed"
    READBACK_MISMATCH = "readback_mismatch"
    # Said by central, which shares the vocabulary.
    NODE_OFFLINE = "node_offline"
    RETIRING = "retiring"
    NOT_SENT = "not_sent"
    UNKNOWN = "unknown"
    NOT_DELIVERED = "not_delivered"
    NO_ANSWER = "no_answer"
    NO_NAMEPLATE = "no_nameplate"
    UNIT = "unit"
    SETPOINT_THROTTLED = "setpoint_throttled"


# Refusals that say nothing about the command itself, only about the moment: not remembered, so that the same
# command id may come again.
NOT_REMEMBERED = frozenset({Code.RETAINED, Code.OLD_EPOCH, Code.STALE, Code.BUSY, Code.STORE_FAILED})


class Message(msgspec.Struct, frozen=True, kw_only=True):
    v: int = WIRE_VERSION


class Envelope(msgspec.Struct, frozen=True):
    """As much of any message as tells whether we can read the rest."""

    v: int


# --- down: commands -------------------------------------------------------------------------------


class SetpointCommand(Message, frozen=True, tag_field="op", tag="setpoint", kw_only=True):
    """Hold these devices at these values, each for `hold_s` from its arrival.

    `sequence` is unique and rising over all of central; a device carries out the highest it has seen.
    `fresh` is a token from the node's own heartbeat, or from its answer to a ping.
    """

    id: str
    epoch: int
    sequence: int
    fresh: str
    request_id: str
    category: str
    values: dict[str, float]
    hold_s: float
    reason: str = ""


class ReleaseCommand(Message, frozen=True, tag_field="op", tag="release", kw_only=True):
    """End the direct holds of these devices now."""

    id: str
    epoch: int
    sequence: int
    fresh: str
    request_id: str
    category: str
    devices: tuple[str, ...]
    reason: str = ""


class PingClosing(msgspec.Struct, frozen=True, kw_only=True):
    """The fourth timestamp of an earlier ping: when its answer arrived at central, by central's clock."""

    id: str
    heard_wall: str


class PingCommand(Message, frozen=True, tag_field="op", tag="ping", kw_only=True):
    """Answer with a fresh token and the times; needs no token itself.

    `closing` ends an earlier exchange of this node's, so that the node can judge its own clock by it.
    """

    id: str
    epoch: int
    sent_wall: str
    closing: PingClosing | None = None


class ResyncCommand(Message, frozen=True, tag_field="op", tag="resync", kw_only=True):
    """Report again what is applied."""

    id: str
    epoch: int


class ExplainCommand(Message, frozen=True, tag_field="op", tag="explain", kw_only=True):
    """Say why a device was held where it was at `at`; None: now. Changes nothing and needs no token."""

    id: str
    epoch: int
    device: str
    at: str | None = None


class ProbeCommand(Message, frozen=True, tag_field="op", tag="probe", kw_only=True):
    """Read all there is to know of a device before it is controlled, and write nothing.

    `device` is the id of a device of the node's configuration. Where that is empty, `candidate` is one that
    is not configured yet, or not like that: as a device of `desired/config`, with the body of its profile.
    """

    id: str
    epoch: int
    fresh: str
    device: str = ""
    candidate: dict[str, Any] | None = None
    profile: dict[str, Any] | None = None


class PreviewCommand(Message, frozen=True, tag_field="op", tag="preview", kw_only=True):
    """Say what a setpoint with these values would do now, and what it would cost.

    Of another kind than a setpoint, so that a node which does not know it does not carry it out. Changes
    nothing and needs no token.
    """

    id: str
    epoch: int
    category: str
    values: dict[str, float]
    hold_s: float


Command = (
    SetpointCommand
    | ReleaseCommand
    | PingCommand
    | ResyncCommand
    | ExplainCommand
    | ProbeCommand
    | PreviewCommand
)


# --- up: answers ----------------------------------------------------------------------------------


class DeviceResult(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What became of one device of a command. `code` is None where the write was confirmed."""

    code: str | None = None
    detail: str = ""
    value: float | None = None
    readback: float | None = None
    holds_s: float | None = None

    @property
    def ok(self) -> bool:
        return self.code is None

    @property
    def reason(self) -> str:
        """As users read it: the code, then what a person can act on."""
        return f"{self.code}: {self.detail}" if self.detail else str(self.code)


class Stage(StrEnum):
    ACCEPTED = "accepted"
    DONE = "done"
    REFUSED = "refused"


class ReasonEntry(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One entry of a node's ring of reasons; `text` says all of it, for people.

    kind `decision`: the array resolves to `value`, or nobody may write the device and there is none; `until`
    is when that was to change by itself. `outcome`: a write of `value` ended; `code` is None where the device
    confirmed it. `gone`: the device left this node. `at` is what the wall clock showed then.
    """

    at: str
    kind: str
    who: str
    text: str
    value: float | None = None
    source: str = ""
    wish: float | None = None
    bounded_by: str | None = None
    request_id: str | None = None
    until: str | None = None
    because: str = ""
    code: str | None = None
    readback: float | None = None


class Explanation(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Why a device was held where it was at `at`, as far as the node's ring reaches back.

    `written` is what became of the decision, the oldest first; `before` and `after` are the entries around
    it. `notes` say what a reader must know of clocks, gaps and the ring itself.
    """

    device: str
    at: str
    reaches_back_to: str
    decision: ReasonEntry
    written: list[ReasonEntry] = []
    before: list[ReasonEntry] = []
    after: list[ReasonEntry] = []
    notes: list[str] = []


class Verdict(StrEnum):
    """What a line of a probe says of the device: as it should be, to be looked at, not to be controlled."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


class ProbeLine(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One thing that a probe looked at.

    `part` is what it belongs to: `identity`, `rated power`, `limit`, `switches`, `own fallback`, `telemetry`
    or `answers`. `key` is the canonical key of a reading, `point` the profile's name of its point, `name` and
    `doc` are the maker's; all empty for what is no point. `value` is in `unit`; None is no value, or none
    that was read, which `detail` tells.
    """

    part: str
    verdict: Verdict
    key: str = ""
    point: str = ""
    name: str = ""
    doc: str = ""
    value: float | str | None = None
    unit: str = ""
    expected: str = ""
    detail: str = ""


class ProbeReport(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What a probe found at `at` of the node's wall clock; the verdict is that of its worst line."""

    profile: str
    title: str
    where: str
    at: str
    took_s: float
    verdict: Verdict
    lines: list[ProbeLine] = []


class PreviewWear(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What a value would cost the registers it goes to, in writes: `now`, and at its `release` as things are.

    `wears`: a write costs the register something, and nobody has accepted that. `today` are the day's writes
    so far, of `per_day`; None is no budget. A ramp, which only registers have that do not wear, takes one
    write a second.
    """

    write_class: str
    wears: bool
    now: int
    release: int
    today: int
    per_day: int | None = None


class DevicePreview(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What a setpoint would do to one device.

    `code` and `detail` as the setpoint would be answered; `code` is None where it would be accepted. `value`
    would be asked of the device first, `target` where its ramp leads. `reason` says all of it, for people.
    `write` is why the device would be written, empty where it holds the value or the write is under way.
    `in_force` is what it was last written, `in_force_reason` why it is held there. `through`: the proxy that
    would pass the value on to it. `reachable` is None where the device was not tried yet.
    """

    code: str | None = None
    detail: str = ""
    value: float | None = None
    target: float | None = None
    source: str = ""
    through: str = ""
    wish: float | None = None
    bounded_by: str | None = None
    reason: str = ""
    holds_s: float | None = None
    write: str = ""
    in_force: float | None = None
    in_force_reason: str = ""
    reachable: bool | None = None
    wear: PreviewWear | None = None


class CommandAnswer(Message, frozen=True, kw_only=True):
    """`accepted` once arbitrated, then `done` with every device's outcome; or `refused` as a whole."""

    id: str
    stage: Stage
    code: str | None = None
    detail: str = ""
    fresh: str | None = None
    devices: dict[str, DeviceResult] = {}
    # ping: the other three of the four timestamps
    sent_wall: str | None = None
    received_wall: str | None = None
    answered_wall: str | None = None
    explanation: Explanation | None = None
    probe: ProbeReport | None = None
    previews: dict[str, DevicePreview] | None = None


# --- up: the node's state -------------------------------------------------------------------------


class Presence(Message, frozen=True, kw_only=True):
    online: bool
    session: str
    boot: str
    sw: str = ""
    versions: tuple[int, ...] = ACCEPTED_VERSIONS
    fresh: str | None = None


class LoopStatus(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """How a closed loop stands: `stand` is a `edge.core.closed_loop.Stand`, `reason` says why, for people.

    Power in kW, positive towards the grid: the setpoint in force, the meter's last reading, and what the
    loop asks of its members together; None where there is none. `since` is when it came to stand like that.
    `bounded_by` is whose bound its output met. `members` are the values it wants of each, in percent.
    """

    id: str
    tag: str
    stand: str
    since: str
    setpoint_kw: float | None = None
    measured_kw: float | None = None
    output_kw: float | None = None
    load_kw: float | None = None
    bounded_by: str = ""
    reason: str = ""
    members: dict[str, float] = {}


class Heartbeat(Message, frozen=True, kw_only=True):
    """A node's sign of life, every five seconds, and at once when one of its loops stands otherwise."""

    session: str
    seq: int
    mono_ms: int
    wall: str
    fresh: str
    loops: tuple[LoopStatus, ...] = ()


# As much of a document's SHA-256 as a report repeats of it, in hex digits.
DIGEST_LENGTH = 16


class AppliedDocument(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What became of one document: `status` is `applied` or `failed`, the latter with its `error`.

    `digest` begins the SHA-256 of the body (`DIGEST_LENGTH`): a version alone could be of a central that was
    since restored from a backup. Empty from nodes that do not tell.
    """

    v: int
    status: str
    error: str = ""
    digest: str = ""


class Alarm(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Something somebody should look at, for as long as it lasts; `device` is empty for the node's own.

    Codes: `clock_unsynced`, `clock_holdover`, `store_failed`, `outbox_dropped`, `loop_refused` (a closed loop
    cannot be used; it says what bounds its members meanwhile); of a device: `wear` (80 % of a day's writes
    are spent), `no_own_fallback` (the device has a fallback of its own that is not armed),
    `limit_not_held` (its own fallback lets go of a connection limit), `loop_stale` (the closed loop of this
    meter has no fresh reading of it), `meter_sign` (it shows the opposite of what the loop's members do),
    `not_followed` (it shows no setpoint, and gives more power than it was limited to), `unresponsive` (a
    member of a closed loop does not follow its command, beyond what missing sun explains).
    """

    code: str
    detail: str
    since: str
    device: str = ""


class Writes(msgspec.Struct, frozen=True, kw_only=True):
    """How often a register was written: since the UTC day began, and ever."""

    today: int
    ever: int


class Reported(Message, frozen=True, kw_only=True):
    """What this node runs: its session and boot, the last sequence each device accepted, its documents.

    `clock` is `trusted`, `holdover` or `unsynced`, and `clock_bound_s` how wrong this node's UTC may be at
    most; None where nothing bounds it.

    `retiring` names, by id, the devices that left the configuration and still hold a value of this node's,
    with what keeps them: until a device is gone from here and the configuration without it is applied, its
    place is taken (design, rule 20).

    `wear` tells, by tag and register, how often registers that wear, or may, were written.

    `values` tells, by tag, what each device holds that confirmed what it should hold, whoever asked for it.

    `mono_ms` orders the reports of one boot: one that comes late, by another inbox, is older.
    """

    session: str
    boot: str
    store: str
    mono_ms: int = 0
    epoch: int
    manifest_version: int
    at: str
    clock: str
    clock_bound_s: float | None = None
    sequences: dict[str, int] = {}
    values: dict[str, float] = {}
    documents: dict[str, AppliedDocument] = {}
    devices_refused: dict[str, str] = {}
    loops_refused: dict[str, str] = {}
    retiring: dict[str, str] = {}
    wear: dict[str, dict[str, Writes]] = {}
    alarms: tuple[Alarm, ...] = ()


class TelemetryPoint(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    t: str
    key: str
    value: float
    unit: str = ""
    q: str = "good"
    device: str = ""


class TelemetryBatch(Message, frozen=True, kw_only=True):
    points: list[TelemetryPoint]


class Stream(StrEnum):
    """What a node stores and forwards, each on its own: the first is never dropped."""

    CONTROL = "control"
    TELEMETRY = "telemetry"


class Gap(msgspec.Struct, frozen=True, kw_only=True):
    """What a stream had to let go of for want of room: this many entries, the first and the last of these."""

    since: str
    until: str
    entries: int


class LogEntry(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One line of a stream: `control` is never dropped, `telemetry` gives up its oldest for want of room.

    kind `result`: what became of a command; `watchdog`: a hold ended and what was written instead;
    `standing`: a limit found at start that this node did not set; `device_error`: somebody should look at a
    device; `retired`: a device that left the configuration is back at its default, or was found to hold
    nothing of this node's; `clock`: the clock's standing changed, `reason` says to what. Of either stream,
    `gap`: entries are missing here. Of `telemetry`, `points`: readings from the time without a link.
    """

    seq: int
    at: str
    kind: str
    category: str = ""
    value: float | None = None
    command_id: str | None = None
    request_id: str | None = None
    sequence: int | None = None
    reason: str = ""
    devices: dict[str, DeviceResult] = {}
    gap: Gap | None = None
    points: tuple[TelemetryPoint, ...] = ()


class LogBatch(Message, frozen=True, kw_only=True):
    """Entries `first` to `last` of one stream of one store; acknowledged after central's commit."""

    stream: str
    store: str
    first: int
    last: int
    entries: list[LogEntry]


# In an acknowledgement: a number no node ever reaches.
NEVER_SENT = 2**53 - 1


class LogAck(Message, frozen=True, kw_only=True):
    """Everything of this stream of this store up to `last` is committed at central.

    A `last` above all that a node ever sent tells it that its disk is an older one, put back: under these
    numbers central has what another life of the node sent. It begins a new store, and sends under that what
    it has not had acknowledged (ADR 0017).
    """

    stream: str
    store: str
    last: int


# --- down: desired state --------------------------------------------------------------------------


class ManifestEntry(msgspec.Struct, frozen=True):
    v: int
    sha256: str


class Manifest(Message, frozen=True, kw_only=True):
    """All that this node should have, and nothing else: a document that is not listed is to be dropped."""

    epoch: int
    version: int
    docs: dict[str, ManifestEntry]


class Document(Message, frozen=True, kw_only=True):
    """One desired document. `sha256` is over the canonical JSON of `body`."""

    epoch: int
    version: int
    sha256: str
    body: dict[str, Any]


class SiteConfig(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    tag: str
    curtailment_time_limit_s: float
    cyclic_write_timeout_s: float
    time_zone: str = "UTC"


class BoundConfig(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One authority's limits on a device, in the unit of its value; None is no limit."""

    origin: str
    minimum: float | None = None
    maximum: float | None = None


class DeviceConfig(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One device of a node. Bounds and default in the type's own unit; `nameplate_kw` is its rated power.

    `owned_by`: tag of the device whose control point also commands this one, which is measured only; or of
    the proxy whose value this one takes.
    `ramp_pct_per_min`: how fast its value may change, in percent of nameplate a minute. `accept_wear`: an
    engineer accepts writes that a register of unknown endurance was not made for. `arm_fallback`: arm the
    device's own fallback although it can only release or only stop. A device on a serial line of the node
    has a `serial_port` (a path below /dev) in place of host and port; what it does not say of baud rate,
    parity (`none`, `even`, `odd`) and stop bits (1, 2) is as its profile has it. One that is reached by a
    `url` (MQTT broker, XML-DA or HTTP server) has that in place of host, port and unit, with user name and
    password where it asks for them. `protocol`: the one of its profile's by which it is reached; empty is the
    profile's first. `parameters`: what it says for itself where its profile leaves that open.
    """

    id: str
    tag: str
    category: str
    profile: str
    host: str = ""
    port: int = 0
    unit: int = 0
    serial_port: str = ""
    baud_rate: int | None = None
    parity: str | None = None
    stop_bits: int | None = None
    url: str = ""
    username: str = ""
    password: str = ""
    protocol: str = ""
    parameters: dict[str, float | str] = {}
    min_value: float = 0.0
    max_value: float = 100.0
    default_value: float = 100.0
    nameplate_kw: float | None = None
    excluded: bool = False
    measured_only: bool = False
    lifetime: str = "cyclic"
    poll_s: float = 1.0
    telemetry_s: float = 10.0
    owned_by: str | None = None
    bounds: tuple[BoundConfig, ...] = ()
    ramp_pct_per_min: float | None = None
    accept_wear: bool = False
    arm_fallback: bool = False


class LoopConfig(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One closed loop of a node: its meter and members by tag, and how it holds the power there (ADR 0033).

    `mode` is `limit` or `track`. The setpoint is the schedule's value for the members' category, else
    `setpoint_kw`, else their default. `kp` has no unit, `ki` is in 1/s, `kd` in s; `max_rate_pct_per_s` and
    `fallback_pct` in percent of nominal power (None: the plain setpoint); limits in kW, both positive, None
    is no limit. `time_step_s` is 0.2 to 60, `stale_after_s` 1 to 300.
    """

    id: str
    tag: str
    meter: str
    members: tuple[str, ...]
    mode: str = "limit"
    setpoint_kw: float | None = None
    feed_forward: bool = True
    kp: float = 0.3
    ki: float = 0.15
    kd: float = 0.0
    max_rate_pct_per_s: float = 100.0
    deadband_kw: float = 0.0
    fallback_pct: float | None = None
    time_step_s: float = 1.0
    stale_after_s: float = 10.0
    export_limit_kw: float | None = None
    import_limit_kw: float | None = None
    storage_first: bool = False


class NodeConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The body of `desired/config`. Devices and loops stay raw: one that cannot be used is refused alone.

    `abandoned`: ids of devices that left the configuration and that nobody waits for any longer, whatever
    they still hold. `renew_certificates_before`: a node whose certificate was issued before this moment asks
    for a new one.
    """

    site: SiteConfig
    devices: list[dict[str, Any]]
    profiles: dict[str, dict[str, Any]]
    loops: tuple[dict[str, Any], ...] = ()
    abandoned: tuple[str, ...] = ()
    renew_certificates_before: str | None = None


class ScheduleBody(msgspec.Struct, frozen=True, kw_only=True):
    """The body of `desired/schedule/{date}/{category}`: one UTC day, `HH:MM` -> value, or null: default."""

    date: str
    category: str
    slots: dict[str, float | None]
