"""What a request for telemetry asks, and how the answer is spelt."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from django.http import QueryDict
from drf_spectacular.utils import OpenApiParameter
from rest_framework import serializers

from devices_app.history import Histories, History, HistoryPoint, Resolution
from devices_app.models import Quality, TelemetrySeries
from smartgrid.api.description import PRINTABLE
from smartgrid.api.fields import NumberField, TimestampField, number, timestamp
from smartgrid.errors import Invalid

DEFAULT_SPAN = timedelta(hours=24)
KEYS_MAX = 100
KEY_LENGTH_MAX = TelemetrySeries._meta.get_field("key").max_length or 0  # noqa: SLF001 - Django's documented name
# RFC 3339, section 5.6.
_RFC_3339 = re.compile(r"\d{4}-\d{2}-\d{2}[Tt]\d{2}:\d{2}:\d{2}(\.\d{1,9})?([Zz]|[+-]\d{2}:\d{2})", re.ASCII)
RESOLUTIONS = [resolution.value for resolution in Resolution]

QUERY = (
    OpenApiParameter(
        "key",
        {
            "type": "array",
            "items": {"type": "string", "maxLength": KEY_LENGTH_MAX, "pattern": PRINTABLE},
            "maxItems": KEYS_MAX,
        },
        explode=True,
        description=f"At most {KEYS_MAX} of them. Default: all.",
    ),
    OpenApiParameter("from", datetime, description="RFC 3339 with an offset. Default: 24 hours before `to`."),
    OpenApiParameter("to", datetime, description="Likewise; told is what was before it. Default: now."),
    OpenApiParameter(
        "resolution",
        str,
        enum=RESOLUTIONS,
        description="Readings, or means of UTC quarters, hours or days. Default: the finest mean that fits.",
    ),
)


class PointOutput(serializers.Serializer[HistoryPoint]):
    timestamp = TimestampField()
    value = NumberField()
    minimum = NumberField(required=False, help_text="Of means only.")
    maximum = NumberField(required=False, help_text="Of means only.")
    count = serializers.IntegerField(required=False, help_text="Of means only: of so many readings.")
    quality = serializers.ChoiceField(choices=Quality.labels)


class SeriesOutput(serializers.Serializer[History]):
    device_id = serializers.UUIDField(allow_null=True)
    node_id = serializers.UUIDField(allow_null=True)
    name = serializers.CharField(help_text="The device's tag, or the node's name.")
    key = serializers.CharField()
    unit = serializers.CharField()
    points = PointOutput(many=True)


class HistoryOutput(serializers.Serializer[Histories]):
    to = TimestampField()
    resolution = serializers.ChoiceField(choices=RESOLUTIONS)
    series = SeriesOutput(many=True)

    def get_fields(self) -> dict[str, serializers.Field[Any, Any, Any, Any]]:
        # A word of the language: it cannot be declared.
        return {"from": TimestampField(), **super().get_fields()}


@dataclass(frozen=True, slots=True)
class HistoryQuery:
    """The telemetry a request asks for; None: whichever."""

    keys: list[str] | None
    since: datetime
    until: datetime
    resolution: Resolution | None


def history_query(query: QueryDict, *, now: datetime) -> HistoryQuery:
    """What the parameters ask for; `Invalid` names the one that cannot be used."""
    for name in query:
        if name not in {parameter.name for parameter in QUERY}:
            raise Invalid.field(name[:KEY_LENGTH_MAX], "there is no such parameter")
    until = _moment(query, "to") or now
    since = _moment(query, "from")
    if since is None:
        since = max(until, datetime.min.replace(tzinfo=UTC) + DEFAULT_SPAN) - DEFAULT_SPAN
    if since >= until:
        raise Invalid.field("from", "it must be before `to`")
    return HistoryQuery(_keys(query.getlist("key")), since, until, _resolution(query))


def _once(query: QueryDict, name: str) -> str | None:
    values = query.getlist(name)
    if len(values) > 1:
        raise Invalid.field(name, "it may stand there once")
    return values[0] if values else None


def _moment(query: QueryDict, name: str) -> datetime | None:
    text = _once(query, name)
    if text is None:
        return None
    expected = "a time as 2026-11-23T10:00:00Z or 2026-11-23T11:00:00+01:00 is expected; in a URL, + is %2B"
    if not _RFC_3339.fullmatch(text):
        raise Invalid.field(name, expected)
    try:
        return datetime.fromisoformat(text.upper()).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise Invalid.field(name, expected) from error


def _keys(keys: Sequence[str]) -> list[str] | None:
    if len(keys) > KEYS_MAX:
        raise Invalid.field("key", f"at most {KEYS_MAX} may be named")
    for key in keys:
        if not (0 < len(key) <= KEY_LENGTH_MAX and key.isprintable()):
            raise Invalid.field("key", f"1 to {KEY_LENGTH_MAX} printable characters are expected")
    return list(keys) or None


def _resolution(query: QueryDict) -> Resolution | None:
    text = _once(query, "resolution")
    if text is None:
        return None
    if text not in RESOLUTIONS:
        raise Invalid.field("resolution", f"one of {', '.join(RESOLUTIONS)} is expected")
    return Resolution(text)


def histories_shown(found: Histories, *, asked: HistoryQuery) -> dict[str, Any]:
    """As `HistoryOutput` declares it; made by hand, since there may be twenty thousand points."""
    show = _reading if found.resolution is Resolution.RAW else _mean
    return {
        "from": timestamp(asked.since),
        "to": timestamp(asked.until),
        "resolution": found.resolution.value,
        "series": [
            {
                "device_id": _id(history.series.device_id),
                "node_id": _id(history.series.node_id),
                "name": history.series.name,
                "key": history.series.key,
                "unit": history.series.unit,
                "points": [show(point) for point in history.points],
            }
            for history in found.histories
        ],
    }


def _id(value: object) -> str | None:
    return None if value is None else str(value)


def _reading(point: HistoryPoint) -> dict[str, Any]:
    return {"timestamp": timestamp(point.at), "value": number(point.value), "quality": point.quality}


def _mean(point: HistoryPoint) -> dict[str, Any]:
    return {
        "timestamp": timestamp(point.at),
        "value": number(point.value),
        "minimum": number(point.minimum),
        "maximum": number(point.maximum),
        "count": point.count,
        "quality": point.quality,
    }
