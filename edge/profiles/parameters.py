"""What differs from device to device of one type: parameters of a profile, and how they get into it.

A profile names its parameters, and says `${name}` wherever a device's own value belongs: a topic, a register
that the maker assigns per project, the sign of a meter that may be wired backwards.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
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

    `choices` are the only values allowed, where there are any. `example` is what checks and simulated devices
    take where there is no default; a device never does.
    """

    title: str
    type: ParameterType = ParameterType.TEXT
    default: ParameterValue | None = None
    example: ParameterValue | None = None
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[ParameterValue, ...] = ()
    help: str = ""

    def check(self, value: object) -> ParameterValue:
        """The value as the profile takes it; `ValueError` says what is expected."""
        if self.type is ParameterType.TEXT:
            if not isinstance(value, str) or not value.isprintable() or len(value) > MAX_TEXT:
                raise ValueError(f"expected a text of at most {MAX_TEXT} printable characters")
            checked: ParameterValue = value
        else:
            checked = self._number(value)
        if self.choices and checked not in self.choices:
            raise ValueError(f"expected one of {', '.join(map(str, self.choices))}")
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
    return parameters


def parameters_checked(
    parameters: Mapping[str, Parameter], given: Mapping[str, object] | None
) -> dict[str, ParameterValue]:
    """What each parameter is for a device that gives these; None: for no device, by default or example.

    `ProfileError` names the parameter that is missing, wrong or unknown.
    """
    for name in given or {}:
        if name not in parameters:
            known = ", ".join(parameters) or "none"
            raise ProfileError(key=f"parameters.{name}", expectation=f"no such parameter; there are: {known}")
    values = {}
    for name, parameter in parameters.items():
        value = parameter.default
        if given is None:
            value = value if value is not None else parameter.example
        elif given.get(name) is not None:
            try:
                value = parameter.check(given[name])
            except ValueError as error:
                raise ProfileError(key=f"parameters.{name}", expectation=str(error)) from error
        if value is None:
            raise ProfileError(key=f"parameters.{name}", expectation=f"required: {parameter.title}")
        values[name] = value
    return values


def parameters_bound(body: Mapping[str, Any], values: Mapping[str, ParameterValue]) -> dict[str, Any]:
    """A profile's body with the parameters' values where it names them; they themselves stay as they are."""
    return {
        key: one if key == "parameters" else _bound(one, values, key=str(key)) for key, one in body.items()
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
