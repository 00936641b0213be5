"""What differs from device to device of one type: parameters of a profile, and how they get into it.

A profile names its parameters, and says `${name}` wherever a device's own value belongs: a topic, a register
that the maker assigns per project, the sign of a meter that may be wired backwards. What only some devices of
the type have hangs on an optional parameter: where a device does not say it, all that needs it is left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from enum import StrEnum
from typing import Any

import msgspec

from edge.profiles.errors import ProfileError
from edge.profiles.points import Data

ParameterValue = float | str
_PLACE = re.compile(r"\$\{([a-z0-9_]+)\}")
MAX_TEXT = 500


class ParameterType(StrEnum):
    INTEGER = "integer"
    NUMBER = "number"
    TEXT = "text"


class Parameter(Data, frozen=True, kw_only=True):
    """One thing to be said of each device of the type. Without a `default` it must be said.

    An `optional` one need not: without it the device lacks the points that name it, and with them the steps,
    checks and readings that name those. `choices` are the only values allowed, where there are any. `example`
    is what checks and simulated devices take where there is no default; a device never does.
    """

    title: str
    type: ParameterType = ParameterType.TEXT
    default: ParameterValue | None = None
    example: ParameterValue | None = None
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[ParameterValue, ...] = ()
    optional: bool = False
    help: str = ""

    @property
    def required(self) -> bool:
        """Tell whether a device has to say it."""
        return self.default is None and not self.optional

    def check(self, value: object) -> ParameterValue:
        """The value as the profile takes it; `ValueError` says what is expected."""
        if self.type is ParameterType.TEXT:
            if not isinstance(value, str) or not value.isprintable() or len(value) > MAX_TEXT:
                raise ValueError(f"expected a text of at most {MAX_TEXT} printable characters")
            checked: ParameterValue = value
        else:
            checked = self._number(value)
        if self.choices and checked not in self.choices:
            raise ValueError(f"expected one of {', '.join(map(_as_text, self.choices))}")
        return checked

    def _number(self, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, float | int) or not math.isfinite(value):
            raise ValueError("expected a number")
        if self.type is ParameterType.INTEGER and value != int(value):
            raise ValueError("expected a whole number")
        low = -math.inf if self.minimum is None else self.minimum
        high = math.inf if self.maximum is None else self.maximum
        if not low <= value <= high:
            raise ValueError(f"expected {low:g} to {high:g}")
        return int(value) if self.type is ParameterType.INTEGER else float(value)


def parameters_of(body: Mapping[str, Any]) -> dict[str, Parameter]:
    """The parameters that a profile's body names; `ProfileError` where they are not ones."""
    raw = body.get("parameters", {})
    if not isinstance(raw, Mapping):
        raise ProfileError(key="parameters", expectation="expected a map")
    parameters = {}
    for name, one in raw.items():
        key = f"parameters.{name}"
        if not re.fullmatch(r"[a-z][a-z0-9_]*", str(name)):
            raise ProfileError(key=key, expectation="expected a name of a-z, 0-9 and _")
        try:
            parameter = parameters[str(name)] = msgspec.convert(one, Parameter)
        except msgspec.ValidationError as error:
            raise ProfileError(key=key, expectation=str(error)) from error
        for what in ("default", "example"):
            value = getattr(parameter, what)
            try:
                if value is not None:
                    parameter.check(value)
            except ValueError as error:
                raise ProfileError(key=f"{key}.{what}", expectation=str(error)) from error
        if parameter.default is None and parameter.example is None:
            raise ProfileError(key=key, expectation="expected a default, or an example where there is none")
        if parameter.optional and parameter.default is not None:
            raise ProfileError(key=f"{key}.optional", expectation="never left out, because it has a default")
    beside_points = parameters_named({key: one for key, one in body.items() if key != "points"})
    for name in sorted(beside_points & {name for name, one in parameters.items() if one.optional}):
        raise ProfileError(
            key=f"parameters.{name}.optional", expectation="only points are left out, and other keys name it"
        )
    return parameters


def parameters_checked(
    parameters: Mapping[str, Parameter], given: Mapping[str, object] | None
) -> dict[str, ParameterValue]:
    """What each parameter is for a device that gives these; None: for no device, by default or example.

    An optional one that the device does not give is not among them. `ProfileError` names the parameter that
    is missing, wrong or unknown.
    """
    for name in given or {}:
        if name not in parameters:
            known = ", ".join(parameters) or "none"
            raise ProfileError(key=f"parameters.{name}", expectation=f"no such parameter; there are: {known}")
    values = {}
    for name, parameter in parameters.items():
        value = None if given is None else given.get(name)
        if value is None:
            value = parameter.default
        if value is None and given is None:
            value = parameter.example
        if value is not None:
            try:
                # A default, too: YAML's 40 is read as 40.0, and has to become what the profile takes.
                values[name] = parameter.check(value)
            except ValueError as error:
                raise ProfileError(key=f"parameters.{name}", expectation=str(error)) from error
        elif parameter.required:
            raise ProfileError(key=f"parameters.{name}", expectation=f"required: {parameter.title}")
    return values


def parameters_needed(parameters: Mapping[str, Parameter]) -> dict[str, ParameterValue]:
    """The examples of those that every device has to say, and no others."""
    return {
        name: parameter.example
        for name, parameter in parameters.items()
        if parameter.required and parameter.example is not None
    }


def parameters_bound(body: Mapping[str, Any], values: Mapping[str, ParameterValue]) -> dict[str, Any]:
    """A profile's body with the parameters' values where it names them; they themselves stay as they are.

    What needs an optional one that has no value is left out. A parameter's value may name others, which do
    not name any: a topic that begins as all of a site's do.
    """
    known = {name: _bound(value, values, key=f"parameters.{name}") for name, value in values.items()}
    for name, value in known.items():
        if isinstance(value, str) and _PLACE.search(value):
            raise ProfileError(key=f"parameters.{name}", expectation="it names one that names another")
    absent = body.get("parameters", {}).keys() - values.keys()
    return {
        key: one if key == "parameters" else _bound(one, known, key=str(key))
        for key, one in (_left_out(body, absent) if absent else body).items()
    }


def parameters_named(body: Any) -> set[str]:
    """The names of all parameters which stand in a body."""
    if isinstance(body, str):
        return set(_PLACE.findall(body))
    if isinstance(body, Mapping):
        return {name for key, one in body.items() if key != "parameters" for name in parameters_named(one)}
    if isinstance(body, list | tuple):
        return {name for one in body for name in parameters_named(one)}
    return set()


def _left_out(body: Mapping[str, Any], absent: Collection[str]) -> dict[str, Any]:
    """A profile's body without the points that name one of these parameters, nor what names such a point."""
    points = body.get("points")
    if not isinstance(points, Mapping):
        return dict(body)
    gone = [name for name, point in points.items() if not parameters_named(point).isdisjoint(absent)]
    kept = {key: _without(one, gone) if key in ("identity", "limit") else one for key, one in body.items()}
    kept["points"] = {name: point for name, point in points.items() if name not in gone}
    if isinstance(telemetry := body.get("telemetry"), Mapping):
        kept["telemetry"] = {key: name for key, name in telemetry.items() if name not in gone}
    limit = kept.get("limit")
    # Without a sign of life there is nothing that would miss one.
    if isinstance(limit, dict) and isinstance(own := limit.get("fallback"), dict) and "keep_alive" not in own:
        del limit["fallback"]
    return kept


def _without(part: Any, gone: Collection[str]) -> Any:
    """A part of the limit or the identity without what names these points; None where nothing is left."""
    if isinstance(part, list | tuple):
        return [left for one in part if (left := _without(one, gone)) is not None] or None
    if not isinstance(part, Mapping):
        return part
    if part.get("point") in gone:
        return None
    kept = {}
    for key, one in part.items():
        if key == "together" and isinstance(one, Mapping):
            kept[key] = {name: value for name, value in one.items() if name not in gone}
        elif key in ("nameplate", "readback", "preset"):
            if one not in gone:
                kept[key] = one
        elif (left := _without(one, gone)) is not None:
            kept[key] = left
    return kept


def _bound(part: Any, values: Mapping[str, ParameterValue], *, key: str) -> Any:
    if isinstance(part, Mapping):
        return {name: _bound(one, values, key=f"{key}.{name}") for name, one in part.items()}
    if isinstance(part, list | tuple):
        return [_bound(one, values, key=f"{key}[{index}]") for index, one in enumerate(part)]
    if not isinstance(part, str):
        return part
    for name in _PLACE.findall(part):
        if name not in values:
            raise ProfileError(key=key, expectation=f"there is no parameter {name!r}")
    whole = _PLACE.fullmatch(part)
    if whole is not None:
        # Alone it keeps its type: an address is a number.
        return values[whole[1]]
    return _PLACE.sub(lambda match: _as_text(values[match[1]]), part)


def _as_text(value: ParameterValue) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
