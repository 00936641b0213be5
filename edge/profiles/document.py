"""`docs/devices.md`: what each device type can do, as its profile says, in words for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

from edge.profiles.contract import Claim, contract_of
from edge.profiles.model import COUNT, FALLBACK, TIMEOUT, VALUE, Limit, LimitUnit, Profile, Step, ValueKind
from edge.profiles.parameters import Parameter
from edge.profiles.points import Confidence, Point, Protocol, Register
from edge.profiles.summary import Capabilities, Control, Fallback, capabilities_of, confidence_of

NO_DRIVER = "that of each device behind it; what makes one of them is held to `tests/runtime/test_proxy.py`"
PROTOCOLS = {
    Protocol.MODBUS_TCP: "Modbus TCP",
    Protocol.MODBUS_RTU: "Modbus RTU",
    Protocol.MQTT: "MQTT",
    Protocol.XML_DA: "OPC XML-DA",
    Protocol.HTTP: "HTTP/JSON",
    Protocol.PROXY: "proxy",
    Protocol.DEMO: "demo",
}
KINDS = {
    ValueKind.ACTIVE_POWER_LIMIT_PCT: "active power limit, %",
    ValueKind.POWER_CAP_PCT: "power cap, %",
    ValueKind.SIGNED_SETPOINT_PCT: "signed setpoint, %",
    ValueKind.CHARGING_POWER_LIMIT_PCT: "charging power limit, %",
    ValueKind.OPERATING_MODE: "operating mode",
}
HEADINGS = {"ev_charger": "EV charger"}
TAKES = {
    "value": "the value it is armed with, which is the device's default",
    "release": "no limit any more",
    "stop": "a stop",
    "preset": "what its installer has set",
}
CONFIDENCE = {
    Confidence.VERIFIED_TWICE: "two independent sources agree",
    Confidence.VERIFIED: "seen in the source that is named",
    Confidence.DERIVED: "follows from verified facts by arithmetic",
    Confidence.UNVERIFIED: "common knowledge, one weak source, or left to the project",
    Confidence.DISPUTED: "sources disagree: find out on site, before anything is controlled",
}
WRITE_CLASSES = {
    "volatile": "kept in memory: may be written again and again, and is lost at the device's restart",
    "persistent": "wears: written on a change only, within a budget for each day",
    "unknown": "nothing is documented: treated as one that wears, without a budget",
}
WORDS = {
    VALUE: "the setpoint",
    FALLBACK: "the fallback value",
    TIMEOUT: "the timeout",
    COUNT: "a number that changes",
}
HEAD = """\
# Devices

What each device type can do, and how well that is known. Made from the profiles (`edge/profiles/data`) by
`python -m edge profiles document`: change a profile, not this page. [Adding a device](add-a-device.md) tells
how.

Where a profile has parameters, this page takes their defaults, and their examples where there are none.
"""
CONFIDENCE_IS = """\
**Confidence** is that of the weakest point which control needs: for recognition, setpoint, release and
read-back.
"""
CONTRACT_IS = """\
**Contract**: what `make test` makes sure of, for each device type by every protocol that reaches it
(`tests/drivers/test_driver_contract.py`), and under a node (`tests/runtime/test_every_profile.py`). A profile
that does not pass is not released.
"""


def document(profiles: Mapping[str, Profile]) -> str:
    """The whole page, equal for equal profiles."""
    ordered = sorted(profiles.values(), key=lambda profile: (profile.category, profile.name))
    parts = [HEAD, _on_hardware(ordered), _terms(), "## Overview\n", overview(ordered) + "\n"]
    for category, members in groupby(ordered, key=lambda profile: profile.category):
        parts.append(f"## {HEADINGS.get(category, category.replace('_', ' ').capitalize())}\n")
        parts += [section(profile) for profile in members]
    return "\n".join(parts)


def overview(profiles: Iterable[Profile]) -> str:
    """One line a device type."""
    rows = []
    for profile in profiles:
        what = capabilities_of(profile)
        rows.append(
            (
                f"[{profile.title}](#{profile.name})",
                profile.category,
                _protocols(profile),
                "only measured" if what.control is None else KINDS[what.control.kind],
                _own_fallback_in_short(what.fallback),
                "" if what.control is None else what.control.write_class.value,
                confidence_of(profile).value.replace("_", " "),
                "yes" if profile.verified_on_hardware else "no",
            )
        )
    return table(
        ("device", "category", "protocol", "control", "own fallback", "writes", "confidence", "on hardware"),
        rows,
    )


def section(profile: Profile, *, all_points: bool = False) -> str:
    """All about one device type. `all_points`: those too that are not readings."""
    what = capabilities_of(profile)
    facts = [
        f"Profile `{profile.name}`; {profile.maker}: {profile.model}.",
        f"**Reached by** {_reached(profile)}.",
        *_pace(profile),
    ]
    if profile.limit is not None and what.control is not None:
        facts += _control(profile, profile.limit, what.control)
        facts.append(f"**Own fallback**: {_own_fallback(profile.limit, what.fallback)}.")
    else:
        facts.append("**Only measured**: nothing is written to it.")
    facts.append(f"**Recognised by** {_identity(profile)}.")
    facts.append(f"**Confidence**: {_confidence(profile, what)}.")
    facts.append(f"**Contract**: {', '.join(contract_of(profile)) or NO_DRIVER}.")
    facts.append(f"**Source**: {profile.source}.")
    lines = [f'<a id="{profile.name}"></a>', "", f"### {profile.title}", ""]
    lines += [f"- {fact}" for fact in facts]
    if profile.notes:
        lines += ["", profile.notes]
    if profile.parameters:
        lines += ["", "Each device says:", "", _parameters(profile.parameters)]
    if profile.telemetry:
        lines += ["", "Readings:", "", _readings(profile)]
    if all_points:
        lines += ["", "Points:", "", _points(profile)]
    return "\n".join(lines).rstrip("\n") + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


# --- the page's own parts


def _on_hardware(profiles: Sequence[Profile]) -> str:
    seen = [profile.title for profile in profiles if profile.verified_on_hardware]
    if not seen:
        return (
            "**None of these profiles has been verified on hardware.** Each is held to the driver contract\n"
            "against a simulated device; whether the device at hand agrees, its commissioning shows:\n"
            "`python -m edge probe`, which writes nothing.\n"
        )
    return f"Verified on hardware: {', '.join(seen)}. No other profile has been.\n"


def _terms() -> str:
    known = [(level.value.replace("_", " "), meaning) for level, meaning in CONFIDENCE.items()]
    promised = [(claim.value, claim.promise) for claim in Claim]
    return "\n".join(
        (
            CONFIDENCE_IS,
            table(("confidence", "the fact is"), known) + "\n",
            "**Writes** cost a register more or less:\n",
            table(("writes", "the setpoint's register"), list(WRITE_CLASSES.items())) + "\n",
            CONTRACT_IS,
            table(("claim", "promise"), promised) + "\n",
        )
    )


# --- one device's facts


def _protocols(profile: Profile) -> str:
    return ", ".join(PROTOCOLS[protocol] for protocol in profile.protocols)


def _reached(profile: Profile) -> str:
    ways = []
    for protocol in profile.protocols:
        way = PROTOCOLS[protocol]
        if protocol is Protocol.MODBUS_TCP:
            # A serial device is reached by TCP through a gateway, which has a port of its own choosing.
            way += f", port {profile.default_port}, unit {profile.default_unit}"
        elif protocol is Protocol.MODBUS_RTU:
            parity = profile.default_parity.value[0].upper()
            serial = f"{profile.default_baud_rate} baud 8{parity}{profile.default_stop_bits}"
            way += f", {serial}, unit {profile.default_unit}, on a serial port or as its frames over TCP"
        elif protocol.has_url:
            way += f" at `{profile.default_url}`" if profile.default_url else " at a URL"
        ways.append(way)
    found = "; its points are found by a walk over its SunSpec models" if profile.sunspec else ""
    return "; or ".join(ways) + found


def _pace(profile: Profile) -> list[str]:
    parts = []
    if profile.min_gap_ms:
        parts.append(f"at least {profile.min_gap_ms} ms between commands")
    if profile.connect_delay_ms:
        parts.append(f"{profile.connect_delay_ms} ms between connecting and the first command")
    if profile.max_sessions is not None:
        parts.append(f"at most {profile.max_sessions} session{'s' if profile.max_sessions > 1 else ''}")
    if profile.sleeps_at_night:
        parts.append("no answer at night, without power before it, is no fault")
    return [f"**Pace**: {'; '.join(parts)}."] if parts else []


def _control(profile: Profile, limit: Limit, control: Control) -> list[str]:
    span = f"{control.minimum:g} to {control.maximum:g}, default {control.default:g}"
    place = f"{_place(profile, control.point)}{_conversion(limit)}"
    facts = [
        f"**Control**: {KINDS[control.kind]}, {span}, written to {place}.",
        f"**Setpoint**: {_steps(profile, limit.set)}.",
    ]
    if limit.once:
        facts.append(f"**Before the first write**: {_steps(profile, limit.once)}.")
    if limit.requires:
        wanted = "; ".join(
            f"{_place(profile, check.point)} reads {_shown(check.equals)}" for check in limit.requires
        )
        facts.append(f"**Required**: {wanted}.")
    if limit.release is not None:
        facts.append(f"**Release**, at {control.maximum:g}: {_steps(profile, limit.release)}.")
    if limit.readback is None:
        facts.append(
            "**Read-back**: none; whether a setpoint is in force is judged by the power that is measured, and"
            " told where that is more for 5 min."
        )
    else:
        switch = limit.readback_switch
        only = (
            f", in force only while {_place(profile, switch.point)} reads {_shown(switch.equals)}"
            if switch is not None
            else ""
        )
        facts.append(
            f"**Read-back**: {_place(profile, limit.readback)}{only}; a mismatch where it is off by more than"
            f" {limit.tolerance:g}."
        )
    budget = f", at most {control.writes_per_day} writes a day" if control.writes_per_day is not None else ""
    depends = limit.volatile_when
    unless = (
        f", while {_place(profile, depends.point)} reads {_shown(depends.equals)}"
        if depends is not None
        else ""
    )
    facts.append(f"**Writes**: {control.write_class.value}{unless}{budget}.")
    return facts


def _conversion(limit: Limit) -> str:
    least = f"; less than {limit.least:g} is written as 0" if limit.least else ""
    match limit.unit:
        case LimitUnit.SAME:
            return least
        case LimitUnit.KW:
            return f", as kW of its peak power{least}"
        case LimitUnit.AMPERE:
            phases = f"{limit.phases} phase{'s' if limit.phases > 1 else ''}"
            return f", as A per phase ({limit.volts:g} V, {phases}) of its peak power{least}"


def _steps(profile: Profile, steps: Iterable[Step]) -> str:
    told = []
    for step in steps:
        writes = [
            f"{_name(profile, name)} = {WORDS.get(str(v), _shown(v))}" for name, v in step.writes.items()
        ]
        text = " and ".join(writes) + (" in one command" if step.together else "")
        if step.when == "if_different":
            text += " where it differs"
        if step.until is not None:
            until = f"{_name(profile, step.until.point)} reads {_shown(step.until.equals)}"
            text += f", until {until} (within {step.within_s:g} s)"
        told.append(text)
    return ", then ".join(told)


def _own_fallback(limit: Limit, fallback: Fallback | None) -> str:
    if fallback is None or limit.fallback is None:
        return "none known: the last setpoint is taken to stay when nobody is there any more"
    armed = "always armed" if limit.fallback.always_armed else "armed by default"
    if not fallback.by_default:
        armed = f"armed only with {fallback.unless} on the device"
    return (
        f"after {fallback.timeout_s:g} s without a sign of life, {TAKES[fallback.takes]}; {armed}, kept alive"
        f" every {fallback.timeout_s / 3:g} s ({limit.fallback.keep_alive_class.value} registers); confidence"
        f" {fallback.confidence.value.replace('_', ' ')}"
    )


def _own_fallback_in_short(fallback: Fallback | None) -> str:
    if fallback is None:
        return ""
    return f"{fallback.takes}, {fallback.timeout_s:g} s" + ("" if fallback.by_default else ", on request")


def _identity(profile: Profile) -> str:
    told = [f"{_place(profile, check.point)} = {_shown(check.equals)}" for check in profile.identity.checks]
    if profile.identity.nameplate is not None:
        told.append(f"its rated power, {_place(profile, profile.identity.nameplate)}, within 10 %")
    return ", ".join(told) or "nothing: whatever answers is taken for it"


def _confidence(profile: Profile, what: Capabilities) -> str:
    told = confidence_of(profile).value.replace("_", " ")
    if what.control is not None and what.reads_confidence is not None:
        told += f"; readings {what.reads_confidence.value.replace('_', ' ')}"
    return told + ("; verified on hardware" if profile.verified_on_hardware else "; not verified on hardware")


def _parameters(parameters: Mapping[str, Parameter]) -> str:
    rows = []
    for name, parameter in parameters.items():
        if parameter.default is not None:
            needed = _shown(parameter.default)
        else:
            needed = "optional" if parameter.optional else "required"
        rows.append((f"`{name}`", parameter.title, _allowed(parameter), needed, parameter.help))
    return table(("parameter", "what it is", "values", "default", "help"), rows)


def _allowed(parameter: Parameter) -> str:
    if parameter.choices:
        return " or ".join(_shown(choice) for choice in parameter.choices)
    low, high = parameter.minimum, parameter.maximum
    if low is not None and high is not None:
        return f"{low:g} to {high:g}"
    if low is not None:
        return f"from {low:g}"
    return f"up to {high:g}" if high is not None else parameter.type.value


def _readings(profile: Profile) -> str:
    rows = []
    for key, name in profile.telemetry.items():
        point = profile.points[name]
        rows.append((f"`{key}`", point.name, _address(point), *_worth(point)))
    return table(("reading", "the maker's name", "where", "unit", "confidence", "note"), rows)


def _points(profile: Profile) -> str:
    rows = []
    for name, point in profile.points.items():
        rows.append(
            (f"`{name}`", point.name, _address(point), point.access.value, *_worth(point), point.source)
        )
    return table(
        ("point", "the maker's name", "where", "access", "unit", "confidence", "note", "source"), rows
    )


def _worth(point: Point) -> tuple[str, str, str]:
    return point.unit, point.confidence.value.replace("_", " "), point.note


def _name(profile: Profile, name: str) -> str:
    return f"{profile.points[name].name} (`{name}`)"


def _place(profile: Profile, name: str) -> str:
    point = profile.points[name]
    return f"{point.name} ({_address(point)})"


def _address(point: Point) -> str:
    if isinstance(point, Register) and point.doc and str(point.address) != point.doc:
        return f"{point.doc}; `{point.key}`"
    return f"`{point.key}`"


def _shown(value: float | str | tuple[float | str, ...]) -> str:
    if isinstance(value, tuple):
        return " or ".join(_shown(one) for one in value)
    return value if isinstance(value, str) else f"{value:.10g}"
