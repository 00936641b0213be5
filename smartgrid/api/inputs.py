"""What callers describe things with: JSON values that mean one thing, and that every database can store."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from rest_framework import serializers
from rest_framework.response import Response
from rest_framework.serializers import BaseSerializer, ListSerializer
from rest_framework.utils.encoders import JSONEncoder

from smartgrid.api.fields import ObjectField, StrictCharField, StrictInput
from smartgrid.api.renderers import json_bytes
from smartgrid.errors import REFUSED_SHOWN, SgmError

# As many at once: all or none of them.
BULK_MAX = 1000
DEPTH_MAX = 16
# What every reader of JSON can hold (RFC 8259, section 6, is stricter still).
INTEGER_MAX = 2**63 - 1


class StrictIntegerField(serializers.IntegerField):
    """A whole JSON number; no text that looks like one, no bool. `60.0` is one (JSON Schema, 6.1.1)."""

    def to_internal_value(self, data: Any) -> int:
        if isinstance(data, bool) or not isinstance(data, int | float) or data != data // 1:
            self.fail("invalid")
        return int(data)


class StrictBooleanField(serializers.BooleanField):
    """`true` or `false`; DRF's own takes "yes" and 1 too."""

    def to_internal_value(self, data: Any) -> bool:
        if not isinstance(data, bool):
            self.fail("invalid", input=data)
        return data


class StrictChoiceField(serializers.ChoiceField):
    """One of these texts; DRF's own takes what merely prints like one."""

    def to_internal_value(self, data: Any) -> Any:
        if not isinstance(data, str):
            self.fail("invalid_choice", input=data)
        return super().to_internal_value(data)


class TagField(StrictCharField):
    """A name that is told from others by its letters: all of them show, and no blank begins or ends it."""

    default_error_messages: ClassVar[dict[str, Any]] = {
        "unprintable": "Printable characters are expected, and no blanks at either end.",
    }

    def to_internal_value(self, data: Any) -> str:
        text = super().to_internal_value(data)
        if not text.isprintable() or text != text.strip():
            self.fail("unprintable")
        return text


class JsonObjectField(ObjectField):
    """Any JSON object, of a bounded size and depth, that comes back from the database as it was sent.

    PostgreSQL stores neither NUL nor half a surrogate pair. Whole numbers have 64 bits at most.
    """

    default_error_messages: ClassVar[dict[str, Any]] = {
        "size": "At most {limit} bytes of JSON are expected.",
        "depth": "Objects and arrays at most {limit} deep are expected.",
        "text": "A text in it cannot be stored: it holds a NUL or half a surrogate pair.",
        "number": "A number in it cannot be stored: a finite one is expected, of at most 64 bits.",
    }

    def __init__(self, *, max_bytes: int = 16 * 1024, max_depth: int = DEPTH_MAX, **options: Any) -> None:
        self.max_bytes, self.max_depth = max_bytes, max_depth
        super().__init__(**options)

    def to_internal_value(self, data: Any) -> dict[str, Any]:
        # Not by way of the parent's, which writes it out, and cannot of what is very deep.
        if not isinstance(data, dict):
            self.fail("not_an_object")
        self._check(data, depth=1)
        # Only what is known to be shallow is written out.
        if len(json.dumps(data, ensure_ascii=False).encode()) > self.max_bytes:
            self.fail("size", limit=self.max_bytes)
        return dict(data)

    def _check(self, value: Any, *, depth: int) -> None:
        match value:
            case str():
                if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
                    self.fail("text")
            case None | bool():
                pass
            case int() | float():
                if abs(value) > INTEGER_MAX if isinstance(value, int) else not math.isfinite(value):
                    self.fail("number")
            case Mapping() | list():
                if depth > self.max_depth:
                    self.fail("depth", limit=self.max_depth)
                for inner in value:
                    self._check(inner, depth=depth + 1)
                if isinstance(value, Mapping):
                    for inner in value.values():
                        self._check(inner, depth=depth + 1)


class ProvisioningInput(StrictInput):
    """What can be set of a thing, and nothing else; what is shown beside it may come back as it was read.

    `shown_only` are the keys of the settings that nobody sets here: so that what was read can be changed in
    one place and sent again. Another value there than the thing has is refused.
    """

    shown_only: ClassVar[Sequence[str]] = ()

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, Mapping) and self.context.get("shown") is not None:
            shown = self.context["shown"]
            echoed = [name for name in self.shown_only if name in data]
            if wrong := [name for name in echoed if data[name] != _as_read(shown[name])]:
                raise serializers.ValidationError({name: ["This cannot be set."] for name in wrong})
            data = {name: value for name, value in data.items() if name not in echoed}
        return super().to_internal_value(data)


def _as_read(value: Any) -> Any:
    """As it stood in the answer: an id is text there."""
    return json.loads(json.dumps(value, cls=JSONEncoder))


def one_of(
    kind: type[ProvisioningInput],
    data: Any,
    *,
    shown: Mapping[str, Any] | None = None,
    some: bool = False,
) -> dict[str, Any]:
    """The one thing that a body describes. `shown`: its settings as they are; `some`: only what changes."""
    # As its reader got it.
    read = None if shown is None else json.loads(json_bytes(shown))
    found: dict[str, Any] = kind(context={"shown": read}, partial=some).run_validation(data)
    return found


def array_of(kind: type[ProvisioningInput]) -> ListSerializer[Any]:
    """One to a thousand of these."""
    return ListSerializer(child=kind(), allow_empty=False, max_length=BULK_MAX)


def many_of(kind: type[ProvisioningInput], data: Any) -> list[dict[str, Any]]:
    """The things that an array describes, 1 to 1,000; of those that are wrong the first hundred are told."""
    try:
        found: list[dict[str, Any]] = array_of(kind).run_validation(data)
    except serializers.ValidationError as error:
        if isinstance(error.detail, dict):
            raise serializers.ValidationError(dict(list(error.detail.items())[:REFUSED_SHOWN])) from error
        raise
    return found


@contextmanager
def spelled(names: Mapping[str, str]) -> Iterator[None]:
    """Let refusals name fields as the API does: `names` maps ours to the API's."""
    try:
        yield
    except SgmError as error:
        error.errors = {_spelled(field, names): texts for field, texts in error.errors.items()}
        prefix, colon, rest = error.detail.partition(": ")
        if colon and prefix in names:
            error.detail = f"{names[prefix]}: {rest}"
        raise


def _spelled(field: str, names: Mapping[str, str]) -> str:
    place, dot, name = field.rpartition(".")
    return f"{place}{dot}{names.get(name, name)}"


def many_shown(kind: type[BaseSerializer[Any]], rows: Sequence[Any]) -> Response:
    """The answer to an array: an array in the same order."""
    return Response(kind(rows, many=True).data)


def deleted(message: str) -> Response:
    """As the guide answers that a schedule is deleted, and with what else is to be known."""
    return Response({"status": "success", "message": message})
