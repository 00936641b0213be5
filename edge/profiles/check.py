"""What a profile must say so that a driver can work by it; each error names the key at fault."""

from __future__ import annotations

from edge.profiles.errors import ProfileError
from edge.profiles.fit import fit_check
from edge.profiles.model import (
    COUNT,
    FALLBACK,
    TIMEOUT,
    VALUE,
    Limit,
    LimitUnit,
    Profile,
    Step,
)
from edge.profiles.payloads import WORDS, steps_of, words_in
from edge.profiles.points import (
    FLOATS,
    MAX_ADDRESS,
    STATUS_ITEMS,
    Item,
    Message,
    Point,
    Protocol,
    Register,
    RegisterType,
    Resource,
    Share,
    WriteFunction,
)

# The unit a reading has is said by the end of its canonical key.
UNIT_BY_SUFFIX = {
    "_kW": "kW",
    "_kvar": "kvar",
    "_kWh": "kWh",
    "_pct": "%",
    "_degC": "degC",
    "_m/s": "m/s",
    "_Hz": "Hz",
    "_V": "V",
    "_A": "A",
    "_rpm": "1/min",
    "_h": "h",
    "_W/m2": "W/m2",
    # A whole number out of a list that the point's note gives, or that the maker's manual explains.
    "_state": "",
    "_mode": "",
    "_code": "",
    # So many of something.
    "_count": "",
}
SETPOINT_WORDS = (VALUE, FALLBACK, TIMEOUT, COUNT)


def profile_check(profile: Profile) -> None:
    """`ProfileError` for the first thing that does not fit."""
    _check_protocols(profile)
    for name, point in profile.points.items():
        _check_point(profile, name, point)
    _check_identity(profile)
    if profile.limit is not None:
        _check_limit(profile, profile.limit)
    for key, name in profile.telemetry.items():
        _check_telemetry(profile, key, name)
    fit_check(profile)


def _check_protocols(profile: Profile) -> None:
    for index, other in enumerate(profile.also):
        if not (profile.protocol.is_modbus and other.is_modbus) or other in profile.protocols[: index + 1]:
            raise ProfileError(
                key=f"also[{index}]",
                expectation=f"{other.value} reaches no points of {profile.protocol.value}",
            )
    if profile.line_timeout_ms is not None and Protocol.MODBUS_RTU not in profile.also:
        raise ProfileError(key="line_timeout_ms", expectation="expected with modbus_rtu among `also`")
    if profile.connect_delay_ms and not profile.protocol.is_modbus:
        raise ProfileError(key="connect_delay_ms", expectation="expected with Modbus only")
    if profile.sunspec and not profile.protocol.is_modbus:
        raise ProfileError(key="sunspec", expectation="expected with Modbus only")
    if profile.availability is not None:
        if profile.protocol is not Protocol.MQTT:
            raise ProfileError(key="availability", expectation="expected with mqtt only")
        _check_topic("availability.topic", profile.availability.topic)
        _check_path("availability.path", profile.availability.path)
        if profile.availability.online == profile.availability.offline:
            raise ProfileError(
                key="availability.offline", expectation="expected another word than for online"
            )
    if profile.headers and profile.protocol is not Protocol.HTTP:
        raise ProfileError(key="headers", expectation="expected with http only")
    if profile.subscribe and profile.protocol is not Protocol.XML_DA:
        raise ProfileError(key="subscribe", expectation="expected with xml_da only")


def _check_point(profile: Profile, name: str, point: Point) -> None:
    key = f"points.{name}"
    if point.scale <= 0:
        raise ProfileError(key=f"{key}.scale", expectation="expected a number above 0; signs go into `sign`")
    if point.codes:
        for value, raw in point.codes.items():
            try:
                float(value)
            except ValueError:
                raise ProfileError(
                    key=f"{key}.codes", expectation=f"expected numbers, not {value!r}"
                ) from None
            if list(point.codes.values()).count(raw) > 1:
                raise ProfileError(key=f"{key}.codes", expectation=f"{raw!r} stands for two values")
    if point.is_text and point.scale != 1:
        raise ProfileError(key=key, expectation="a text has no scale and no nan")
    if isinstance(point, Register):
        _check_register(profile, key, point)
    elif isinstance(point, Message):
        _check_message(key, point)
    elif isinstance(point, Resource):
        if point.readable and not point.read_path:
            raise ProfileError(key=f"{key}.read_path", expectation="expected, because the point can be read")
        if point.writable and not point.write_path:
            raise ProfileError(
                key=f"{key}.write_path", expectation="expected, because the point can be written"
            )
        _check_path(f"{key}.path", point.path)
        _check_words(f"{key}.body", point.body, point)
        if words_in(point.write_path) - {"value"}:
            raise ProfileError(key=f"{key}.write_path", expectation="a path says $value, and no other word")
    elif isinstance(point, Item):
        _check_item(key, point)
    elif isinstance(point, Share) and bool(point.reading) == point.writable:
        raise ProfileError(key=f"{key}.reading", expectation="a setpoint is written, a reading is not")


def _check_item(key: str, point: Item) -> None:
    if not point.item.startswith("$status."):
        return
    if point.item not in STATUS_ITEMS:
        raise ProfileError(key=f"{key}.item", expectation=f"expected one of {', '.join(STATUS_ITEMS)}")
    if point.writable or not point.is_text or point.item_path:
        raise ProfileError(
            key=key,
            expectation="expected a text that is only read, without a path: its server says it of itself",
        )


def _check_message(key: str, point: Message) -> None:
    _check_topic(f"{key}.topic", point.topic)
    _check_path(f"{key}.path", point.path)
    if point.access.value == "read_write":
        raise ProfileError(
            key=f"{key}.access", expectation="one topic is read or written: expected two points"
        )
    if point.readable:
        for name in ("ack_topic", "payload", "valid_s"):
            if getattr(point, name):
                raise ProfileError(key=f"{key}.{name}", expectation="the point is not writable")
        return
    if point.kept:
        raise ProfileError(key=f"{key}.kept", expectation="the point is not readable")
    _check_words(f"{key}.payload", point.payload, point)
    if point.ack_topic:
        _check_topic(f"{key}.ack_topic", point.ack_topic)
        for name in ("ack_id", "ack_ok", "ack_reason"):
            _check_path(f"{key}.{name}", getattr(point, name))
        if "id" not in words_in(point.payload):
            raise ProfileError(
                key=f"{key}.payload",
                expectation="expected $id, which tells this command's answer from others",
            )


def _check_topic(key: str, topic: str) -> None:
    if any(letter in topic for letter in "+#\0"):
        raise ProfileError(key=key, expectation="expected a topic without wildcards")


def _check_path(key: str, path: str) -> None:
    try:
        steps_of(path)
    except ValueError as error:
        raise ProfileError(key=key, expectation=str(error)) from error


def _check_words(key: str, template: object, point: Message | Resource) -> None:
    words = words_in(template)
    for word in sorted(words - set(WORDS)):
        raise ProfileError(
            key=key, expectation=f"there is no ${word}, only {', '.join(f'${known}' for known in WORDS)}"
        )
    if "valid_s" in words and point.valid_s is None:
        raise ProfileError(key=key, expectation="expected valid_s beside it, because it says $valid_s")


def _check_register(profile: Profile, key: str, point: Register) -> None:
    if (point.type in (RegisterType.STR, RegisterType.BITS)) != (point.length is not None):
        raise ProfileError(key=f"{key}.length", expectation="expected for types str and bits, and only there")
    if (point.type is RegisterType.BITS) != point.table.is_bits:
        raise ProfileError(
            key=f"{key}.type", expectation="expected bits in coils and discrete inputs, only there"
        )
    if (point.model is not None) != profile.sunspec:
        raise ProfileError(key=f"{key}.model", expectation="expected in a SunSpec profile, and only there")
    if point.end > MAX_ADDRESS + 1:
        raise ProfileError(
            key=f"{key}.address",
            expectation=f"its {point.count} registers reach beyond address {MAX_ADDRESS}",
        )
    if point.table.read_only and point.writable:
        raise ProfileError(key=f"{key}.access", expectation=f"{point.table.value} registers can only be read")
    if point.write_function is not None and not point.writable:
        raise ProfileError(key=f"{key}.write_function", expectation="the point is not writable")
    if point.write_function is WriteFunction.SINGLE and point.count > 1:
        raise ProfileError(
            key=f"{key}.write_function",
            expectation=f"'single' writes one register, the value has {point.count}",
        )
    if point.scale_point is not None:
        factor = _point(profile, point.scale_point, key=f"{key}.scale_point", readable=True)
        assert isinstance(factor, Register)
        if factor.type is not RegisterType.S16 or factor.scale_point is not None:
            raise ProfileError(
                key=f"{key}.scale_point", expectation="expected a point of type s16, itself unscaled"
            )
    if point.type is RegisterType.STR and (point.scale_point or point.nan is not None):
        raise ProfileError(key=key, expectation="a text has no scale and no nan")
    if point.type in FLOATS and point.nan is not None:
        raise ProfileError(key=f"{key}.nan", expectation="a float that is no number needs no pattern")


def _point(profile: Profile, name: str, *, key: str, readable: bool = False, writable: bool = False) -> Point:
    point = profile.points.get(name)
    if point is None:
        raise ProfileError(key=key, expectation=f"expected the name of a point, there is no {name!r}")
    if readable and not point.readable:
        raise ProfileError(key=key, expectation=f"{name!r} is write-only, expected a point that can be read")
    if writable and not point.writable:
        raise ProfileError(
            key=key, expectation=f"{name!r} is read-only, expected a point that can be written"
        )
    return point


def _number(profile: Profile, name: str, *, key: str) -> Point:
    point = _point(profile, name, key=key, readable=True)
    if point.is_text and not point.codes:
        raise ProfileError(key=key, expectation=f"{name!r} is a text, expected a number")
    return point


def _check_identity(profile: Profile) -> None:
    for index, check in enumerate(profile.identity.checks):
        _point(profile, check.point, key=f"identity.checks[{index}].point", readable=True)
    if profile.identity.nameplate is not None:
        point = _number(profile, profile.identity.nameplate, key="identity.nameplate")
        if point.unit not in ("kW", "kVA"):
            raise ProfileError(
                key="identity.nameplate", expectation=f"expected a point in kW or kVA, not {point.unit!r}"
            )


def _check_limit(profile: Profile, limit: Limit) -> None:
    if profile.value_kind is None:
        raise ProfileError(key="value_kind", expectation="expected, because the profile has a limit")
    if not profile.min_value < profile.max_value:
        raise ProfileError(
            key="max_value", expectation=f"expected more than min_value, {profile.min_value:g}"
        )
    if not profile.min_value <= profile.default_value <= profile.max_value:
        raise ProfileError(
            key="default_value", expectation=f"expected {profile.min_value:g} to {profile.max_value:g}"
        )
    _point(profile, limit.register, key="limit.register", writable=True)
    _check_unit(profile, limit)
    own = limit.fallback
    if own is not None:
        if own.takes == "value" and not any(FALLBACK in step.writes.values() for step in own.arm):
            raise ProfileError(
                key="limit.fallback.arm", expectation=f"expected a step that writes {FALLBACK}"
            )
        if own.preset is not None and own.takes != "preset":
            raise ProfileError(
                key="limit.fallback.preset", expectation="expected only where it takes a preset"
            )
        if own.preset is not None:
            _number(profile, own.preset, key="limit.fallback.preset")
    _check_validity(profile, limit)
    for part, steps in (
        ("once", limit.once),
        ("set", limit.set),
        ("release", limit.release or ()),
        ("fallback.arm", own.arm if own is not None else ()),
        ("fallback.keep_alive", own.keep_alive if own is not None else ()),
    ):
        for index, step in enumerate(steps):
            _check_step(profile, part, step, key=f"limit.{part}[{index}]")
    if not any(VALUE in step.writes.values() for step in limit.set):
        raise ProfileError(key="limit.set", expectation=f"expected a step that writes {VALUE}")
    for index, check in enumerate(limit.requires):
        _point(profile, check.point, key=f"limit.requires[{index}].point", readable=True)
    if limit.volatile_when is not None:
        _point(profile, limit.volatile_when.point, key="limit.volatile_when.point", readable=True)
    if limit.readback is not None:
        _number(profile, limit.readback, key="limit.readback")
    if limit.readback_switch is not None:
        if limit.readback is None:
            raise ProfileError(
                key="limit.readback", expectation="expected, because there is a readback_switch"
            )
        _number(profile, limit.readback_switch.point, key="limit.readback_switch.point")


def _check_validity(profile: Profile, limit: Limit) -> None:
    """A setpoint that lapses by itself has a keep-alive, and one that comes in time."""
    own = limit.fallback
    kept = {name for step in own.keep_alive for name in step.writes} if own is not None else set()
    timeout_s = own.timeout_s if own is not None else 0.0
    for index, step in enumerate(limit.set):
        for name in step.writes:
            point = profile.points.get(name)
            valid_s = point.valid_s if isinstance(point, Message | Resource) else None
            if valid_s is not None and (name not in kept or valid_s < timeout_s):
                raise ProfileError(
                    key=f"limit.set[{index}].point",
                    expectation=f"{name!r} is valid for {valid_s:g} s only, expected a fallback of that time"
                    " whose keep_alive writes it",
                )


def _check_unit(profile: Profile, limit: Limit) -> None:
    if limit.unit is LimitUnit.SAME:
        return
    assert profile.value_kind is not None
    if not profile.value_kind.value.endswith("_pct"):
        raise ProfileError(
            key="limit.unit", expectation=f"only a percentage is turned into {limit.unit.value}"
        )
    written = {name for step in limit.set for name, value in step.writes.items() if value == VALUE}
    for name in sorted(written | ({limit.readback} if limit.readback else set())):
        point = profile.points.get(name)
        if point is not None and point.unit != limit.unit.value:
            raise ProfileError(
                key=f"points.{name}.unit", expectation=f"expected {limit.unit.value}, as limit.unit says"
            )


def _check_step(profile: Profile, part: str, step: Step, *, key: str) -> None:
    before: Point | None = None
    for name, value in step.writes.items():
        point = _point(profile, name, key=f"{key}.point", writable=True, readable=step.when == "if_different")
        if before is not None and not _is_behind(before, point):
            raise ProfileError(
                key=f"{key}.together", expectation=f"{name!r} is not directly behind the point before it"
            )
        before = point
        if (
            value == VALUE
            and isinstance(point, Message)
            and point.payload
            and "value" not in words_in(point.payload)
        ):
            raise ProfileError(
                key=f"{key}.value", expectation=f"the payload of {name!r} does not say {VALUE}"
            )
        if (
            value == VALUE
            and isinstance(point, Resource)
            and point.body
            and "value" not in words_in(point.body) | words_in(point.write_path)
        ):
            raise ProfileError(key=f"{key}.value", expectation=f"the body of {name!r} does not say {VALUE}")
        if isinstance(value, str) and value not in SETPOINT_WORDS and not point.is_text:
            raise ProfileError(
                key=f"{key}.value", expectation=f"expected a number or one of {', '.join(SETPOINT_WORDS)}"
            )
        if part in ("once", "fallback.arm") and value == VALUE:
            raise ProfileError(key=f"{key}.value", expectation=f"no setpoint is known yet, not {VALUE}")
        if not part.startswith("fallback") and value in (FALLBACK, TIMEOUT):
            raise ProfileError(key=f"{key}.value", expectation=f"{value} belongs to limit.fallback")
        if part != "fallback.keep_alive" and value == COUNT:
            raise ProfileError(key=f"{key}.value", expectation=f"{value} is a sign of life: keep_alive only")
    if step.until is not None:
        _point(profile, step.until.point, key=f"{key}.until.point", readable=True)


def _is_behind(before: Point, point: Point) -> bool:
    if not isinstance(before, Register) or not isinstance(point, Register):
        return False
    same_place = (before.table, before.model) == (point.table, point.model)
    return same_place and point.address == before.end


def _check_telemetry(profile: Profile, key: str, name: str) -> None:
    point = _number(profile, name, key=f"telemetry.{key}")
    expected = next((unit for suffix, unit in UNIT_BY_SUFFIX.items() if key.endswith(suffix)), None)
    if expected is None:
        raise ProfileError(
            key=f"telemetry.{key}", expectation=f"expected a key that ends in {', '.join(UNIT_BY_SUFFIX)}"
        )
    if point.unit != expected:
        raise ProfileError(
            key=f"telemetry.{key}",
            expectation=f"expected a point in {expected}, {name!r} is in {point.unit!r}",
        )
