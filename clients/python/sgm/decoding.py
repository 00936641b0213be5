"""JSON of the API -> frozen dataclasses: strict in types, indulgent to fields that it does not know."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from datetime import date, datetime
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from sgm.errors import AnswerInvalid


@dataclass(frozen=True, kw_only=True)
class Model:
    """An object of the API. `raw` is what was sent, with fields that this version does not know."""

    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)


M = TypeVar("M", bound=Model)


def decode(kind: type[M], data: Any, *, where: str = "") -> M:
    """Make an object of what was sent; `AnswerInvalid` names the place that is not as the API has it."""
    where = where or kind.__name__
    if not isinstance(data, dict):
        raise AnswerInvalid(f"{where}: an object is expected, not {_name(data)}.")
    values: dict[str, Any] = {"raw": data}
    for known, hint in _fields_of(kind):
        key = known.metadata.get("key", known.name)
        if key in data:
            values[known.name] = _convert(data[key], hint, f"{where}.{key}")
        elif known.default is MISSING and known.default_factory is MISSING:
            raise AnswerInvalid(f"{where}.{key} is missing.")
    return kind(**values)


def decode_list(kind: type[M], data: Any) -> list[M]:
    if not isinstance(data, list):
        raise AnswerInvalid(f"A list of {kind.__name__} is expected, not {_name(data)}.")
    return [decode(kind, item, where=f"{kind.__name__} {number}") for number, item in enumerate(data)]


_KNOWN: dict[type[Model], tuple[tuple[Field[Any], Any], ...]] = {}


def _fields_of(kind: type[Model]) -> tuple[tuple[Field[Any], Any], ...]:
    if kind not in _KNOWN:
        hints = get_type_hints(kind)
        _KNOWN[kind] = tuple((known, hints[known.name]) for known in fields(kind) if known.name != "raw")
    return _KNOWN[kind]


def _convert(value: Any, hint: Any, where: str) -> Any:
    if hint is Any:
        return value
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _convert(value, next(one for one in arguments if one is not type(None)), where)
    if origin is tuple and isinstance(value, list):
        return tuple(_convert(item, arguments[0], f"{where}.{n}") for n, item in enumerate(value))
    if origin is Mapping and isinstance(value, dict):
        return {key: _convert(item, arguments[1], f"{where}.{key}") for key, item in value.items()}
    if is_dataclass(hint) and isinstance(hint, type) and issubclass(hint, Model):
        return decode(hint, value, where=where)
    return _scalar(value, hint, where)


def _scalar(value: Any, hint: Any, where: str) -> Any:
    # JSON has one kind of number, and true is none of them.
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return value
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint in (str, bool) and isinstance(value, hint):
        return value
    if isinstance(value, str) and hint in (datetime, date):
        try:
            return hint.fromisoformat(value)
        except ValueError as error:
            raise AnswerInvalid(f"{where}: {value!r} is no {hint.__name__}.") from error
    raise AnswerInvalid(f"{where}: {getattr(hint, '__name__', hint)} is expected, not {_name(value)}.")


def _name(value: Any) -> str:
    return "null" if value is None else type(value).__name__
