"""`sgm ping`, `version`, `sites`, `site`, `nodes`, `devices`, `health`, `errors` and `telemetry`."""

from __future__ import annotations

import csv
import io
import time
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.text import Text

from sgm.cli.exits import NOT_DONE, OK
from sgm.cli.output import NOTHING, Cell, number
from sgm.cli.session import Session, command
from sgm.models import Device, Point, Series

SITE = Annotated[str, typer.Argument(help="The site's id, tag or name.")]
MAYBE_SITE = Annotated[str | None, typer.Argument(help="Only this site: its id, tag or name.")]


class ResolutionChoice(StrEnum):
    RAW = "raw"
    QUARTER = "15m"
    HOUR = "1h"
    DAY = "1d"


def register(app: typer.Typer) -> None:
    for name, function in (
        ("ping", ping),
        ("version", version),
        ("sites", sites),
        ("site", site),
        ("nodes", nodes),
        ("devices", devices),
        ("health", health),
        ("errors", errors),
        ("telemetry", telemetry),
    ):
        command(app, name)(function)


def ping(session: Session) -> int:
    """See that address and credentials are good."""
    client = session.client
    began_s = time.monotonic()
    answered = client.ping()
    took_ms = (time.monotonic() - began_s) * 1000
    if session.output.as_json:
        session.output.json(
            {"answered": answered, "api_url": client.settings.api_url, "ms": round(took_ms, 1)}
        )
    else:
        session.output.line(f"{client.settings.api_url} answers, in {took_ms:.0f} ms.")
    return OK if answered else NOT_DONE


def version(session: Session) -> int:
    """Show which version answers."""
    found = session.client.version()
    if session.output.as_json:
        session.output.json(found.raw)
    else:
        session.output.line(f"version {found.git_version}, database {found.alembic_version}")
    return OK


def sites(session: Session) -> int:
    """List the sites that this management token opens."""
    found = list(session.client.sites())
    if session.output.as_json:
        session.output.json([one.raw for one in found])
        return OK
    rows = [[one.site_tag, one.name, f"{one.curtailment_time_limit} s", one.id] for one in found]
    session.output.table(("TAG", "NAME", "HOLDS", "ID"), rows, empty="This management token opens no site.")
    return OK


def site(session: Session, site: SITE) -> int:
    """Show a site: what it measures, its nodes and devices."""
    client, output = session.client, session.output
    found = client.site(client.site_find(site).id)
    here = list(client.nodes(site_id=found.id))
    devices = list(client.devices(site_id=found.id))
    if output.as_json:
        shown: dict[str, Any] = {"nodes": [one.raw for one in here], "devices": [one.raw for one in devices]}
        output.json(dict(found.raw) | shown)
        return OK
    output.line(Text.assemble((found.name, "bold"), f"  {found.site_tag}  {found.id}"))
    output.line(f"A request holds for {found.curtailment_time_limit} s.")
    for metric in found.metrics:
        output.line(f"  {metric.key} {number(metric.value)}  {output.when(metric.timestamp)}")
    output.line()
    health = {one.node_name: one.healthy for one in client.health(site_tag=found.site_tag)}
    rows: list[list[Cell]] = [
        [one.polaris_node_name, _health(health.get(one.polaris_node_name)), one.id] for one in here
    ]
    output.table(("NODE", "HEALTH", "ID"), rows, empty="It has no node.")
    output.line()
    _tell_devices(session, devices)
    return OK


def nodes(session: Session, site: MAYBE_SITE = None) -> int:
    """List nodes."""
    client = session.client
    site_id = client.site_find(site).id if site else None
    found = list(client.nodes(site_id=site_id))
    if session.output.as_json:
        session.output.json([one.raw for one in found])
        return OK
    rows = [[one.polaris_node_name, one.site_id, one.id] for one in found]
    session.output.table(("NODE", "SITE", "ID"), rows, empty="There is no node.")
    return OK


def devices(
    session: Session,
    site: MAYBE_SITE = None,
    *,
    category: Annotated[str | None, typer.Option("--category", help="Only this category.")] = None,
) -> int:
    """List devices with the values that their nodes confirmed."""
    client = session.client
    site_id = client.site_find(site).id if site else None
    found = list(client.devices(site_id=site_id, category=category))
    if session.output.as_json:
        session.output.json([one.raw for one in found])
    else:
        _tell_devices(session, found)
    return OK


def _tell_devices(session: Session, devices: list[Device]) -> None:
    rows = [
        [
            one.device_tag,
            one.category,
            number(one.value),
            f"{number(one.min_value)}..{number(one.max_value)}, default {number(one.default_value)}",
            NOTHING if one.peak_power_kw is None else f"{number(one.peak_power_kw)} kW",
            "" if one.include_in_curtailment else "excluded",
            one.id,
        ]
        for one in devices
    ]
    headers = ("DEVICE", "CATEGORY", "VALUE", "TAKES", "PEAK", "", "ID")
    session.output.table(headers, rows, empty="There is no such device.")


def health(session: Session) -> int:
    """Show which nodes are connected and answer; exit code 1 where one is not."""
    found = session.client.health()
    is_well = all(one.healthy for one in found)
    if session.output.as_json:
        session.output.json([one.raw for one in found])
    else:
        rows: list[list[Cell]] = [[one.site_tag, one.node_name, _health(one.healthy)] for one in found]
        session.output.table(("SITE", "NODE", "HEALTH"), rows, empty="There is no node.")
    return OK if is_well else NOT_DONE


def _health(healthy: bool | None) -> Text:
    if healthy is None:
        return Text(NOTHING)
    return Text("healthy", "green") if healthy else Text("not healthy", "red")


def errors(
    session: Session,
    site: MAYBE_SITE = None,
    *,
    hours: Annotated[int, typer.Option("--hours", min=1, max=720, help="How far back.")] = 24,
) -> int:
    """List what went wrong at devices, the newest last."""
    client, output = session.client, session.output
    site_id = client.site_find(site).id if site else None
    found = [one for one in client.device_errors(hours=hours) if site_id in (None, one.site_id)]
    if output.as_json:
        output.json({one.site_id: one.raw for one in found})
        return OK
    lines = sorted(
        (detail.timestamp, one.site_name, tag, detail.error)
        for one in found
        for tag, of_device in one.devices.items()
        for detail in of_device.error_details
    )
    rows = [[output.when(at), name, tag, error] for at, name, tag, error in lines]
    output.table((f"AT ({output.zone})", "SITE", "DEVICE", "ERROR"), rows, empty=f"No error in {hours} h.")
    return OK


# --- telemetry ----------------------------------------------------------------------------------------------


def telemetry(
    session: Session,
    device: Annotated[str, typer.Argument(help="The device's tag or id.")],
    key: Annotated[list[str] | None, typer.Argument(help="P_kW, ...; all where none is named.")] = None,
    *,
    begins: Annotated[str | None, typer.Option("--from", help="A time, or -6h for six hours ago.")] = None,
    ends: Annotated[str | None, typer.Option("--to", help="A time, or -1h for an hour ago.")] = None,
    resolution: Annotated[ResolutionChoice | None, typer.Option("--resolution", help="How fine.")] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="As CSV, times in UTC.")] = False,
    site: Annotated[str | None, typer.Option("--site", help="Where several sites have such a tag.")] = None,
) -> int:
    """Show what a device measured."""
    client, output = session.client, session.output
    now = datetime.now(UTC)
    try:
        first, last = (None if text is None else moment(text, now=now) for text in (begins, ends))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    site_id = client.site_find(site).id if site else None
    found = client.telemetry(
        device_id=client.device_find(device, site_id=site_id).id,
        keys=key or (),
        begins=first,
        ends=last,
        resolution=resolution.value if resolution else None,
    )
    if output.as_json:
        output.json(found.raw)
        return OK
    if as_csv:
        output.text(_csv([(one, point) for one in found.series for point in one.points]))
        return OK
    for one in found.series:
        output.line(Text.assemble((one.key, "bold"), f" {one.unit or ''}"))
        rows = [
            [output.when(point.timestamp), number(point.value), number(point.minimum), number(point.maximum)]
            for point in one.points
        ]
        output.table((f"AT ({output.zone})", "VALUE", "LEAST", "MOST"), rows, empty="Nothing was measured.")
    if not found.series:
        output.note("Nothing was measured.")
    return OK


def _csv(points: list[tuple[Series, Point]]) -> str:
    out = io.StringIO(newline="")
    lines = csv.writer(out, lineterminator="\n")
    lines.writerow(("timestamp", "key", "unit", "value", "minimum", "maximum", "count"))
    for series, point in points:
        at = point.timestamp.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        numbers = (point.value, point.minimum, point.maximum, point.count)
        cells = ("" if value is None else repr(value) for value in numbers)
        lines.writerow((at, series.key, series.unit or "", *cells))
    return out.getvalue()


_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def moment(text: str, *, now: datetime) -> datetime:
    """A time as people give it: RFC 3339, local without an offset, or how long ago: `-90s`, `-10m`, `-7d`.

    `ValueError` where it is neither.
    """
    try:
        if text.startswith("-"):
            return now - timedelta(**{_UNITS[text[-1:]]: float(text[1:-1])})
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError, KeyError) as error:
        raise ValueError(f"{text!r}: expected 2026-11-23T10:53:00Z, or -10m for ten minutes ago") from error
