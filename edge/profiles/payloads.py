"""Values in JSON and back, as a profile's points say: paths, templates, scales. No I/O, no state.

Drivers read and tell devices with it, and simulators are devices with it, so that there is one definition of
where a value stands in a document and of what it is worth there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from edge.profiles.points import Message, Resource, Value

# What a template may say in place of a value of its own.
WORDS = ("value", "id", "now", "valid_s")

_STEP = re.compile(r"""(?P<key>[^.\[\]"]+)|\[(?P<index>\d{1,6})\]|\["(?P<quoted>[^"]+)"\]""")
_WORD = re.compile(r"\$([a-z_]+)")
# As JSON has it, and nothing that Python takes besides (underscores, infinities, other alphabets' digits).
_NUMBER = re.compile(r"\s*[+-]?\d+(\.\d+)?([eE][+-]?\d+)?\s*", re.ASCII)

JsonPoint = Message | Resource


class Missing(LookupError):  # noqa: N818 - states the fault
    """There is nothing at this place of the document."""


# --- where a value stands


@lru_cache(maxsize=4096)
def steps_of(path: str) -> tuple[str | int, ...]:
    """`power.ac`, `cells[0].v`, `["1-0:1.8.0"].value`: names and places, outermost first.

    A leading `$.` is allowed, as JSONPath has it. `ValueError` where it is no path.
    """
    rest = path.removeprefix("$") if path.startswith(("$.", "$[")) else path
    rest = rest.removeprefix(".") if rest is not path else rest
    steps: list[str | int] = []
    position = 0
    while position < len(rest):
        if steps and rest[position] == ".":
            position += 1
        elif steps and rest[position] != "[":
            raise ValueError(f"{path!r} is not a path such as power.ac or cells[0].v")
        match = _STEP.match(rest, position)
        if match is None:
            raise ValueError(f"{path!r} is not a path such as power.ac or cells[0].v")
        index = match["index"]
        steps.append(int(index) if index is not None else match["key"] or match["quoted"])
        position = match.end()
    return tuple(steps)


def find(document: object, path: str) -> object:
    """What stands there; the document itself for an empty path. `Missing` where nothing does."""
    for step in steps_of(path):
        if isinstance(step, int):
            if not isinstance(document, list) or step >= len(document):
                raise Missing(path)
            document = document[step]
        else:
            if not isinstance(document, dict) or step not in document:
                raise Missing(path)
            document = document[step]
    return document


def put(document: object, path: str, raw: object) -> object:
    """The document with this value there; what leads to it is made where it is not there yet."""
    steps = steps_of(path)
    if not steps:
        return raw
    step, rest = steps[0], steps[1:]
    inner = "".join(f"[{one}]" if isinstance(one, int) else f'["{one}"]' for one in rest)
    if isinstance(step, int):
        items = list(document) if isinstance(document, list) else []
        items += [None] * (step + 1 - len(items))
        items[step] = put(items[step], inner, raw)
        return items
    members = dict(document) if isinstance(document, dict) else {}
    members[step] = put(members.get(step), inner, raw)
    return members


# --- what it is worth


def value_of(point: JsonPoint, raw: object) -> Value:
    """What a raw value means; None where it is JSON's null, or a code that the point does not know.

    Truth counts as 1 and 0, and a number may stand in a text. `ValueError` where it is nothing of the kind.
    """
    if raw is None:
        return None
    if point.codes:
        return _decoded(point, raw)
    if point.is_text:
        if isinstance(raw, dict | list):
            raise ValueError("expected a text")
        return raw if isinstance(raw, str) else _as_text(raw)
    return _tidy(point.sign * point.scale * number_of(raw))


def raw_of(point: JsonPoint, value: Value) -> object:
    """A value in the device's own terms; `ValueError` where the point cannot say it."""
    if point.codes and value is not None:
        for code, raw in point.codes.items():
            if not isinstance(value, str) and float(code) == value:
                return raw
            if value == code:
                return raw
        raise ValueError(f"expected one of {', '.join(point.codes)}")
    if point.is_text:
        if value is None:
            return None
        return value if isinstance(value, str) else _as_text(value)
    if value is None:
        return None
    if isinstance(value, str):
        raise ValueError("a text, expected a number")  # noqa: TRY004 - as for every value that cannot be said
    if not math.isfinite(value):
        raise ValueError("not a finite number")
    return whole(_tidy(point.sign * value / point.scale))


def number_of(raw: object) -> float:
    """A finite number; `ValueError` where it is none."""
    if isinstance(raw, str):
        if len(raw) > 64 or _NUMBER.fullmatch(raw) is None:  # noqa: PLR2004 - no number is longer
            raise ValueError("expected a number")
        raw = float(raw)
    if not isinstance(raw, int | float):
        raise ValueError("expected a number")  # noqa: TRY004 - what a device says is no programming error
    number = float(raw)
    if not math.isfinite(number):
        raise ValueError("expected a finite number")
    return number


def _decoded(point: JsonPoint, raw: object) -> Value:
    for code, known in point.codes.items():
        # A truth that is told as `true` in the profile is a text there.
        if raw == known or _as_text(raw) == known:
            return float(code)
    return None


def _tidy(number: float) -> float:
    # A tenth has no exact binary form: 3 * 0.1 is 0.30000000000000004.
    return float(f"{number:.12g}") + 0.0


def whole(number: float) -> float | int:
    """A number as JSON is to have it: without a fraction where it has none."""
    # Some devices take 60000 and refuse 60000.0; none is known to do the opposite.
    return int(number) if number == int(number) and abs(number) < 2**53 else number


def _as_text(raw: object) -> str:
    if isinstance(raw, bool):
        return "true" if raw else "false"
    if isinstance(raw, float):
        return str(whole(raw))
    return str(raw)


# --- what a device is told


def words_in(template: object) -> set[str]:
    """The words that stand in a template, known or not."""
    if isinstance(template, str):
        return set(_WORD.findall(template))
    if isinstance(template, Mapping):
        return {word for one in template.values() for word in words_in(one)}
    if isinstance(template, list | tuple):
        return {word for one in template for word in words_in(one)}
    return set()


def filled(template: Any, words: Mapping[str, object]) -> Any:
    """The template with these in place of its words. A word that stands alone keeps its value's type.

    An empty template is the bare value. `KeyError` names a word that is not among them.
    """
    return words["value"] if template == "" else _filled(template, words)


def _filled(part: Any, words: Mapping[str, object]) -> Any:
    if isinstance(part, Mapping):
        return {key: _filled(one, words) for key, one in part.items()}
    if isinstance(part, list | tuple):
        return [_filled(one, words) for one in part]
    if not isinstance(part, str):
        return part
    alone = _WORD.fullmatch(part)
    if alone is not None:
        return words[alone[1]]
    return _WORD.sub(lambda match: _as_text(words[match[1]]), part)
