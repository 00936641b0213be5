"""`sgm curtail`, `release`, `why`, `logs` and `events`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, Self

import typer
from rich.live import Live
from rich.text import Text

from sgm.cli.exits import INTERRUPTED, NOT_DONE, OK, UNAVAILABLE, exit_code_of
from sgm.cli.follow import Wakes
from sgm.cli.names import site_tags
from sgm.cli.output import Output, clean, number, table_of
from sgm.cli.session import Session, command
from sgm.cli.watch import Held, Watch
from sgm.errors import SgmError
from sgm.events import Subject
from sgm.models import ControlAnswer, ControlLog, DeviceChange, LoopChange, NodeChange, Reason, Site

SITE = Annotated[str, typer.Argument(help="The site's id, tag or name.")]
TAGS = Annotated[list[str] | None, typer.Option("--tag", help="Only this device; may be given again.")]
REASON = Annotated[str | None, typer.Option("--reason", help="Why; it stands in the logs.")]
YES = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
KEY = Annotated[
    str | None,
    typer.Option("--idempotency-key", help="Requests under one key are done once; drawn where not given."),
]


class UnitChoice(StrEnum):
    PERCENT = "percent"
    KW = "kw"


def register(app: typer.Typer) -> None:
    command(app, "curtail")(curtail)
    command(app, "release")(release)
    command(app, "why")(why)
    command(app, "logs")(logs)
    command(app, "events")(events)


# --- curtail and release ------------------------------------------------------------------------------------


def curtail(
    session: Session,
    site: SITE,
    category: Annotated[str, typer.Argument(help="inverter, battery, ev_charger, ...")],
    value: Annotated[float, typer.Argument(help="What its devices take: percent for most.")],
    *,
    tag: TAGS = None,
    unit: Annotated[UnitChoice | None, typer.Option("--unit", help="kw: for all devices together.")] = None,
    reason: REASON = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Ask the nodes what it would do.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Follow the devices until the hold ends.")] = False,
    yes: YES = False,
    idempotency_key: KEY = None,
) -> int:
    """Hold the devices of a category at a value, for the site's time limit.

    A value that begins with a minus stands behind two dashes: sgm curtail SITE battery -- -20
    """
    found = session.client.site_find(site)
    what = f"{category} at {number(value)}{' kW' if unit is UnitChoice.KW else ''}"
    if not dry_run and not session.confirm(
        f"{found.name}: {what} for {found.curtailment_time_limit} s?", yes=yes
    ):
        return NOT_DONE
    output = session.output
    try:
        answer = session.client.curtail(
            found.id,
            category=category,
            value=value,
            device_tags=tag,
            unit=unit.value if unit else None,
            reason=reason,
            dry_run=dry_run,
            idempotency_key=idempotency_key,
        )
    except KeyboardInterrupt:
        output.note(
            f"Nobody waited for the answer: it may have been done. `{_release(found, category)}` ends it."
        )
        return INTERRUPTED
    code = OK if answer.is_done else NOT_DONE
    if watch and not dry_run:
        looked = Watch(
            tags=list(answer.result.updated),
            category=category,
            value=value,
            limit_s=found.curtailment_time_limit,
        )
        return max(code, _follow(session, found, looked, f"{found.name}: {what}", answer))
    if output.as_json:
        output.json(answer.raw)
    elif dry_run:
        _tell_preview(output, found, what, answer)
    else:
        _tell_answer(output, f"{found.name}: {what}", answer)
        if answer.result.updated:
            ends = output.clock(datetime.now(UTC) + timedelta(seconds=found.curtailment_time_limit))
            output.line(f"Until {ends} ({found.curtailment_time_limit} s), or `{_release(found, category)}`.")
    return code


def release(
    session: Session,
    site: SITE,
    category: Annotated[str | None, typer.Argument(help="Only this category.")] = None,
    *,
    tag: TAGS = None,
    reason: REASON = None,
    yes: YES = False,
    idempotency_key: KEY = None,
) -> int:
    """End holds early: the devices go to their schedule or default."""
    found = session.client.site_find(site)
    if not session.confirm(f"{found.name}: end the holds of {category or 'all devices'}?", yes=yes):
        return NOT_DONE
    answer = session.client.release(
        found.id, category=category, device_tags=tag, reason=reason, idempotency_key=idempotency_key
    )
    if session.output.as_json:
        session.output.json(answer.raw)
    else:
        _tell_answer(session.output, f"{found.name}: {category or 'all devices'} released", answer)
    return OK if answer.is_done else NOT_DONE


def _release(site: Site, category: str) -> str:
    return f"sgm release {clean(site.site_tag)} {clean(category)}"


def _tell_answer(output: Output, what: str, answer: ControlAnswer) -> None:
    replay = ", answered before" if answer.is_replay else ""
    output.line(f"{what}: {answer.status}{replay}")
    for tag in answer.result.updated:
        output.line(Text.assemble(f"  {clean(tag)}  ", ("done", "green")))
    for tag, reason in answer.result.not_updated.items():
        output.line(Text.assemble(f"  {clean(tag)}  ", (clean(reason), "red")))
    if answer.result.not_updated and answer.request_id:
        output.note(f"request {answer.request_id}")


def _tell_preview(output: Output, site: Site, what: str, answer: ControlAnswer) -> None:
    output.line(f"{site.name}: {what} would be: {answer.status}. Nothing was sent to a device.")
    for tag, told in answer.preview.items():
        output.line(Text.assemble((f"  {clean(tag)}", "bold"), f"  {clean(told.reason)}"))
        output.line(f"    now {number(told.in_force)}: {told.in_force_reason}")
        if told.write is None:
            output.line("    nothing would be written")
        elif told.wear is not None and told.wear.wears:
            budget = (
                "no budget"
                if told.wear.per_day is None
                else f"{told.wear.today} of {told.wear.per_day} today"
            )
            output.line(f"    writes {told.wear.now} now, {told.wear.release} at the end; {budget}")
        if told.reachable is False:
            output.line(Text("    the device does not answer", "yellow"))
    for tag, why in answer.result.not_updated.items():
        output.line(Text.assemble(f"  {clean(tag)}  ", (clean(why), "red")))


# --- following a hold ---------------------------------------------------------------------------------------


class _Progress:
    """What is shown of a watch: a table that is drawn anew on a terminal, else a line for each change."""

    def __init__(self, output: Output, watch: Watch) -> None:
        self._output = output
        self._watch = watch
        self._live = Live(console=output.out, auto_refresh=False) if output.is_live else None
        self.trouble = ""

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def tell(self, changed: Iterable[Held], *, after_s: float) -> None:
        left_s = self._watch.left_s(after_s=after_s)
        if self._live is not None:
            self._live.update(self._table(left_s), refresh=True)
            return
        for held in changed:
            if self._output.as_json:
                line = {"event": "device", "device_tag": held.tag, "value": held.value}
                self._output.json_line(line | {"ended": held.ended or None, "left_s": round(left_s, 1)})
            else:
                at = self._output.clock(datetime.now(UTC))
                self._output.line(f"{at}  {held.tag}  {number(held.value)}  {held.told(left_s=left_s)}")

    def _table(self, left_s: float) -> Any:
        rows = [
            [
                Text(clean(held.tag)),
                Text(number(held.value)),
                Text(held.told(left_s=left_s), "green" if held.ended else "yellow"),
            ]
            for held in self._watch.held.values()
        ]
        table = table_of(("DEVICE", "VALUE", "HOLD"), rows)
        table.caption = clean(self.trouble) or None
        return table


def _follow(session: Session, site: Site, watch: Watch, what: str, answer: ControlAnswer) -> int:
    """Tell the answer, and of the holds until all have ended; Ctrl-C leaves them, and says so."""
    output = session.output
    answered_s = time.monotonic()
    try:
        if output.as_json:
            output.json_line({"event": "answer"} | dict(answer.raw))
        else:
            _tell_answer(output, what, answer)
        if not watch.tags:
            return NOT_DONE
        wakes = Wakes(session.listener(), types=("control_log", "device"), site_id=site.id)
        with _Progress(output, watch) as progress:
            _look_until_over(session, site, watch, wakes=wakes, progress=progress, answered_s=answered_s)
    except KeyboardInterrupt:
        left_s = watch.left_s(after_s=time.monotonic() - answered_s)
        if output.as_json:
            output.json_line({"event": "left", "left_s": round(left_s, 1)})
        else:
            output.line(f"The hold stays for {left_s:.0f} s. To end it: `{_release(site, watch.category)}`.")
        return INTERRUPTED
    if output.as_json:
        output.json_line({"event": "end", "open": [held.tag for held in watch.open]})
    elif watch.open:
        tags = ", ".join(held.tag for held in watch.open)
        output.line(f"The limit has passed, and nothing was heard of {tags}: look with `sgm why {tags}`.")
    return NOT_DONE if watch.open else OK


def _look_until_over(
    session: Session, site: Site, watch: Watch, *, wakes: Wakes, progress: _Progress, answered_s: float
) -> None:
    looked_s: float | None = None
    is_woken = True
    while True:
        after_s = time.monotonic() - answered_s
        changed: list[Held] = []
        if is_woken or looked_s is None or after_s - looked_s >= wakes.poll_s:
            looked_s = after_s
            try:
                # First the log, then the values: whose hold has ended shows what it holds since.
                ended = watch.take_logs(session.client.logs(site_id=site.id, limit=100))
                moved = watch.take_devices(session.client.devices(site_id=site.id, category=watch.category))
                changed = [*moved, *(held for held in ended if held not in moved)]
                progress.trouble = ""
            except SgmError as error:
                # The hold ends whether we see it or not; so we go on looking until it must have.
                if not progress.trouble and not session.output.is_live:
                    session.output.error(error)
                progress.trouble = str(error)
        progress.tell(changed, after_s=after_s)
        if watch.is_over(after_s=after_s):
            return
        is_woken = wakes.wait(1.0)


# --- why ----------------------------------------------------------------------------------------------------


def why(
    session: Session,
    device: Annotated[str, typer.Argument(help="The device's tag or id.")],
    *,
    at: Annotated[
        str | None, typer.Option("--at", help="A time, 2026-11-23T10:53:00Z, or -10m for ten minutes ago.")
    ] = None,
    site: Annotated[str | None, typer.Option("--site", help="Where several sites have such a tag.")] = None,
) -> int:
    """Ask the node why a device stands where it stands, or stood then."""
    site_id = session.client.site_find(site).id if site else None
    found = session.client.device_find(device, site_id=site_id)
    told = session.client.explain(found.id, at=at)
    output = session.output
    if output.as_json:
        output.json(told.raw)
        return OK
    output.line(Text.assemble((clean(found.device_tag), "bold"), f" at {output.when(told.at)}"))
    output.line(f"  {told.decision.text}")
    for title, entries in (("became of it", told.written), ("before", told.before), ("after", told.after)):
        _tell_reasons(output, title, entries)
    for note in told.notes:
        output.line(f"  note: {note}")
    output.note(f"The node remembers back to {output.when(told.reaches_back_to)} ({output.zone}).")
    return OK


def _tell_reasons(output: Output, title: str, entries: Sequence[Reason]) -> None:
    if entries:
        output.line(Text(f"  {title}:", "bold"))
    for entry in entries:
        output.line(f"    {output.when(entry.at)}  {entry.text}")


# --- logs and events ----------------------------------------------------------------------------------------


def logs(
    session: Session,
    site: Annotated[str | None, typer.Argument(help="Only this site: its id, tag or name.")] = None,
    *,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="How many.")] = 20,
    category: Annotated[str | None, typer.Option("--category", help="Only this category.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
) -> int:
    """Show who asked for what, and where devices fell back by themselves; the newest last."""
    client, output = session.client, session.output
    site_id = client.site_find(site).id if site else None
    wakes = Wakes(session.listener(), types=("control_log",), site_id=site_id) if follow else None
    lines = client.logs(site_id=site_id, limit=limit, category=category)
    if wakes is None and output.as_json:
        output.json([line.raw for line in lines])
        return OK
    if wakes is None and not lines:
        output.note("Nothing was logged yet.")
    tags: dict[str, str] = {}
    _tell_logs(session, list(reversed(lines)), tags)
    seen = {line.id for line in lines}
    while wakes is not None:
        wakes.wait(wakes.poll_s)
        lines = _newer(session, seen, site_id=site_id, category=category)
        _tell_logs(session, list(reversed(lines)), tags)
        seen |= {line.id for line in lines}
    return OK


def _newer(
    session: Session, seen: set[str], *, site_id: str | None, category: str | None
) -> list[ControlLog]:
    """What was logged since, the newest first; nothing while nobody answers."""
    try:
        lines = session.client.logs(site_id=site_id, limit=100, category=category)
        if lines and not any(line.id in seen for line in lines):
            # More than that happened meanwhile.
            lines = session.client.logs(site_id=site_id, limit=1000, category=category)
    except SgmError as error:
        if exit_code_of(error) != UNAVAILABLE:
            raise
        session.output.note(f"{error} Still looking ...")
        return []
    return [line for line in lines if line.id not in seen]


def _tell_logs(session: Session, lines: list[ControlLog], tags: dict[str, str]) -> None:
    """Lines, with the tags of their sites, which are looked up where `tags` has them not."""
    output = session.output
    if not output.as_json and (unknown := {line.site_id for line in lines} - tags.keys()):
        tags |= site_tags(session.client, unknown)
    for line in lines:
        if output.as_json:
            output.json_line(line.raw)
        else:
            where = tags.get(line.site_id, line.site_id)
            output.line(Text.assemble(f"{output.when(line.created_at)}  {clean(where)}  ", _log_text(line)))


def _log_text(line: ControlLog) -> Text:
    colour = {"success": "green", "partial": "yellow", "failed": "red"}.get(line.status, "")
    return Text.assemble(
        f"{'watchdog' if line.watchdog else 'request'}  {clean(line.category)}  {number(line.value)}  ",
        (clean(line.status), colour),
        f"  {clean(', '.join(line.result.updated))}",
        *((f"  {clean(tag)}: {clean(why)}", "red") for tag, why in line.result.not_updated.items()),
    )


def events(
    session: Session,
    site: Annotated[str | None, typer.Argument(help="Only this site: its id, tag or name.")] = None,
    *,
    types: Annotated[
        list[str] | None,
        typer.Option("--type", help="alarm, control_log, device, loop or node; may be given again."),
    ] = None,
    after: Annotated[
        str | None, typer.Option("--after", help="The id of the last event seen: what came since.")
    ] = None,
) -> int:
    """Show what happens as it happens, until Ctrl-C."""
    site_id = session.client.site_find(site).id if site else None
    output = session.output
    for event in session.client.events(types=types or (), site_id=site_id, after=after):
        if output.as_json:
            output.json_line({"id": event.id, "type": event.type, "data": event.data})
        else:
            at = output.clock(datetime.now(UTC))
            output.line(
                Text.assemble(f"{at}  ", (clean(event.type), "bold"), "  ", _event_text(event.subject))
            )
    return OK


def _event_text(subject: Subject | None) -> Text:
    match subject:
        case ControlLog():
            return _log_text(subject)
        case DeviceChange():
            return Text(clean(f"{subject.device_tag}  {subject.category}  {number(subject.value)}"))
        case LoopChange():
            return Text(clean(f"{subject.loop_tag}  {subject.stand}  {subject.reason}".rstrip()))
        case NodeChange():
            is_there = {True: "online", False: "offline", None: ""}[subject.online]
            is_well = {True: "healthy", False: "not healthy", None: ""}[subject.healthy]
            return Text(clean(f"{subject.polaris_node_name}  {is_there}  {is_well}".rstrip()))
    return Text("something was missed: read the lists again")
