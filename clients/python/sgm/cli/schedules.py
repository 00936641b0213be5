"""`sgm schedule list`, `show`, `push`, `pull` and `delete`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from sgm.cli.exits import NOT_DONE, OK
from sgm.cli.names import site_tags
from sgm.cli.output import NOTHING, Cell, Output, number
from sgm.cli.session import Session, command
from sgm.client import Client
from sgm.errors import BadRequest, Conflict, NotFound, SgmError
from sgm.models import Device, Schedule, Site
from sgm.plans import SLOTS, Action, PlanRow, PlanUnreadable, action_of, changes_of, plans_read, plans_write
from sgm.settings import private_write

app = typer.Typer(help="Plans by quarter hours of UTC.", no_args_is_help=True)

SITE = Annotated[str, typer.Argument(help="The site's id, tag or name.")]
MAYBE_SITE = Annotated[str | None, typer.Argument(help="Only this site: its id, tag or name.")]
CATEGORY = Annotated[str | None, typer.Option("--category", help="Only this category.")]
FROM = Annotated[str | None, typer.Option("--from", help="The first day, YYYY-MM-DD.")]
UNTIL = Annotated[str | None, typer.Option("--until", help="The last day, YYYY-MM-DD.")]
YES = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def _day(text: str | None) -> date | None:
    if text is None:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r}: a day is expected, YYYY-MM-DD") from error


# --- looking ------------------------------------------------------------------------------------------------


def listing(
    session: Session,
    site: MAYBE_SITE = None,
    *,
    category: CATEGORY = None,
    begins: FROM = None,
    ends: UNTIL = None,
) -> int:
    """List what is planned, from today on where no day is named."""
    found, tags = _found(session, site, category, begins or _today().isoformat(), ends)
    if session.output.as_json:
        session.output.json([one.raw for one in found])
        return OK
    rows = [
        [
            str(one.valid_on),
            tags.get(one.site_id, one.site_id),
            one.category,
            f"{sum(value is not None for value in one.schedule.values())} of {len(SLOTS)}",
            _synchronized(one),
            one.id,
        ]
        for one in sorted(found, key=lambda one: (one.valid_on, tags.get(one.site_id, ""), one.category))
    ]
    headers = ("DAY (UTC)", "SITE", "CATEGORY", "QUARTERS", "NODES", "ID")
    session.output.table(headers, rows, empty="Nothing is planned.")
    return OK


def _synchronized(schedule: Schedule) -> Cell:
    result = schedule.synchronization_result
    if result is None:
        return Text("not all have answered", "yellow")
    status = str(result.get("status", NOTHING))
    return Text(status, "green" if status == "applied" else "red" if status == "failed" else "yellow")


def show(
    session: Session,
    site: SITE,
    category: Annotated[str, typer.Argument(help="inverter, battery, ...")],
    day: Annotated[str, typer.Argument(help="The day, YYYY-MM-DD, of UTC.")],
) -> int:
    """Show a day's plan, and which nodes have it."""
    found = session.client.site_find(site)
    schedule = _of_day(session.client, found, category, day)
    output = session.output
    if output.as_json:
        output.json(schedule.raw)
        return OK
    output.line(f"{found.name}, {category}, {schedule.valid_on} (UTC)")
    rows = [
        [slot, _local(output, schedule.valid_on, slot), number(value)]
        for slot, value in sorted(schedule.schedule.items())
        if value is not None
    ]
    output.table(("UTC", output.zone, "VALUE"), rows, empty="Every quarter hour has the default.")
    for name, told in (schedule.synchronization_result or {}).get("nodes", {}).items():
        output.line(f"node {name}: {told.get('status')}")
    if schedule.synchronization_result is None:
        output.note("Not all nodes have answered yet.")
    return OK


def _local(output: Output, day: date, slot: str) -> str:
    hour, minute = slot.split(":")
    return output.when(datetime.combine(day, time(int(hour), int(minute)), UTC))


def pull(
    session: Session,
    site: MAYBE_SITE = None,
    *,
    category: CATEGORY = None,
    begins: FROM = None,
    ends: UNTIL = None,
    to: Annotated[Path | None, typer.Option("--output", "-o", help="Into this file.")] = None,
) -> int:
    """Write schedules as CSV, which `push` and the console take back."""
    found, tags = _found(session, site, category, begins, ends)
    if session.output.as_json:
        session.output.json([one.raw for one in found])
        return OK
    text = plans_write(found, site_tags=tags)
    if to is None:
        session.output.text(text.replace("\r\n", "\n"))
    else:
        try:
            private_write(to, text)
        except OSError as error:
            raise PlanUnreadable(f"{to}: {error.strerror}") from error
        session.output.note(f"{len(found)} schedules are in {to}.")
    return OK


def delete(
    session: Session,
    site: SITE,
    category: Annotated[str, typer.Argument(help="inverter, battery, ...")],
    day: Annotated[str, typer.Argument(help="The day, YYYY-MM-DD, of UTC.")],
    *,
    yes: YES = False,
) -> int:
    """Take a day's plan back: its quarter hours fall to the default."""
    found = session.client.site_find(site)
    schedule = _of_day(session.client, found, category, day)
    if not session.confirm(f"Delete the plan of {category} at {found.name} on {day}?", yes=yes):
        return NOT_DONE
    session.client.schedule_delete(schedule.id)
    if session.output.as_json:
        session.output.json({"deleted": schedule.id})
    else:
        session.output.line(f"{found.name}, {category}, {day}: deleted.")
    return OK


def _found(
    session: Session, site: str | None, category: str | None, begins: str | None, ends: str | None
) -> tuple[list[Schedule], dict[str, str]]:
    """The schedules, and the tags of their sites."""
    client = session.client
    chosen = client.site_find(site) if site else None
    found = list(
        client.schedules(
            site_id=chosen.id if chosen else None,
            category=category,
            valid_from=_day(begins),
            valid_until=_day(ends),
        )
    )
    if chosen:
        return found, {chosen.id: chosen.site_tag}
    return found, site_tags(client, {one.site_id for one in found})


def _of_day(client: Client, site: Site, category: str, day: str) -> Schedule:
    for schedule in client.schedules(site_id=site.id, category=category, valid_on=_day(day)):
        return schedule
    raise NotFound(f"{site.name} has no plan of {category} on {day}.", status=404, code="not_found")


# --- pushing ------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Step:
    """What a row of the file comes to; `became` is empty until it was tried."""

    row: PlanRow
    site: Site | None = None
    before: Schedule | None = None
    warning: str = ""
    became: str = ""
    detail: str = ""

    @property
    def action(self) -> Action:
        return action_of(self.row, self.before)

    def as_json(self) -> dict[str, Any]:
        return {
            "row": self.row.number,
            "site_tag": self.row.site_tag,
            "category": self.row.category,
            "valid_on": str(self.row.valid_on) if self.row.valid_on else None,
            "action": None if self.row.errors else self.action.value,
            "errors": self.row.errors,
            "warning": self.warning,
            "became": self.became or None,
            "detail": self.detail,
        }


def push(
    session: Session,
    file: Annotated[Path, typer.Argument(help="CSV as `sgm schedule pull` and the console write it.")],
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change.")] = False,
    yes: YES = False,
) -> int:
    """Create or replace the plans of a file: all rows are checked before any is sent.

    What is there already as the file has it is left alone, so a push that broke off is simply run again.
    """
    output = session.output
    steps = _steps(session.client, plans_read(_text_of(file)), today=_today())
    if not output.as_json:
        _tell_steps(output, steps)
    if any(step.row.errors for step in steps):
        return _ended(output, steps, "Nothing was sent: rows cannot be taken.", code=NOT_DONE)
    to_do = [step for step in steps if step.action is not Action.NOTHING]
    if dry_run or not to_do:
        return _ended(
            output, steps, "Nothing was sent." if dry_run else "All of it is there already.", code=OK
        )
    if not session.confirm(f"Send {len(to_do)} plans?", yes=yes):
        return NOT_DONE
    stopped = _send(session, to_do)
    done = sum(step.became == "done" for step in to_do)
    if done == len(to_do):
        return _ended(output, steps, f"{done} of {len(to_do)} plans are done.", code=OK)
    refused = ", ".join(str(step.row.number) for step in to_do if step.became == "refused")
    told = f"{done} of {len(to_do)} plans are done." + (f" Refused: row {refused}." if refused else "")
    _ended(output, steps, f"{told} Run it again for the rest: what is done stays as it is.", code=NOT_DONE)
    if stopped is not None:
        raise stopped
    return NOT_DONE


def _text_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise typer.BadParameter(f"{file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise PlanUnreadable(
            f"{file} is not in UTF-8 (at byte {error.start}): save it as 'CSV UTF-8'."
        ) from error


def _today() -> date:
    return datetime.now(UTC).date()


def _steps(client: Client, rows: list[PlanRow], *, today: date) -> list[Step]:
    """Each row beside what is planned now; what cannot be taken has errors."""
    sites = {tag: list(client.sites(site_tag=tag)) for tag in sorted({row.site_tag for row in rows}) if tag}
    devices: dict[str, list[Device]] = {}
    planned: dict[tuple[str, str, date], Schedule] = {}
    days = [row.valid_on for row in rows if row.valid_on is not None]
    for found in sites.values():
        if len(found) == 1 and days:
            here = found[0].id
            devices[here] = list(client.devices(site_id=here))
            for one in client.schedules(site_id=here, valid_from=min(days), valid_until=max(days)):
                planned[one.site_id, one.category, one.valid_on] = one
    return [_step(row, sites, devices, planned, today=today) for row in rows]


def _step(
    row: PlanRow,
    sites: Mapping[str, list[Site]],
    devices: Mapping[str, list[Device]],
    planned: Mapping[tuple[str, str, date], Schedule],
    *,
    today: date,
) -> Step:
    found = sites.get(row.site_tag, [])
    if row.site_tag and len(found) != 1:
        row.errors["site_tag"] = (
            "No such site, or not for this management token." if not found else "Several sites have this tag."
        )
    if row.errors or row.valid_on is None:
        return Step(row)
    step = Step(row, site=found[0], before=planned.get((found[0].id, row.category, row.valid_on)))
    if step.action is Action.NOTHING:
        return step
    if row.valid_on < today:
        row.errors["valid_on"] = "This day is over (UTC)."
    members = [one for one in devices[found[0].id] if one.category == row.category]
    if not members:
        row.errors["category"] = f"{found[0].name} has no device of this category."
    else:
        _check_range(step, members)
    return step


def _check_range(step: Step, members: list[Device]) -> None:
    """What no device takes is wrong; what some do not take, central knows better whether they must."""
    for slot, value in step.row.slots.items():
        takers = [one for one in members if one.min_value <= value <= one.max_value]
        if not takers:
            least, most = min(one.min_value for one in members), max(one.max_value for one in members)
            step.row.errors[slot] = f"{number(value)} is outside {number(least)}..{number(most)}."
        elif len(takers) < len(members):
            others = next(one for one in members if one not in takers)
            step.warning = f"{slot} {number(value)} is outside the range of {others.device_tag}"


def _send(session: Session, steps: list[Step]) -> SgmError | None:
    """Send row after row; the error that made it impossible to go on, if there was one."""
    output = session.output
    for done, step in enumerate(steps, 1):
        try:
            _send_one(session.client, step)
        except (BadRequest, Conflict, NotFound) as error:
            step.became, step.detail = "refused", str(error)
        except SgmError as error:
            step.became = "failed"
            step.detail = str(error)
            return error
        if not output.as_json:
            row = step.row
            told = Text(step.became, "green" if step.became == "done" else "red")
            where = f"{done}/{len(steps)}  row {row.number}  {row.site_tag}  {row.category}  {row.valid_on}  "
            output.line(Text.assemble(where, told, f"  {step.detail}".rstrip()))
    return None


def _send_one(client: Client, step: Step) -> None:
    if step.site is None or step.row.valid_on is None:
        raise AssertionError("a row without errors has a site and a day")
    send = client.schedule_create if step.action is Action.CREATE else client.schedule_replace
    send(
        site_id=step.site.id,
        category=step.row.category,
        valid_on=step.row.valid_on,
        slots=step.row.slots,
    )
    step.became = "done"


def _tell_steps(output: Output, steps: Iterable[Step]) -> None:
    rows: list[list[Cell]] = []
    for step in steps:
        row = step.row
        if row.errors:
            what: Cell = Text("cannot be taken", "red")
            more = "; ".join(f"{name}: {text}" for name, text in list(row.errors.items())[:3])
        else:
            what = Text(step.action.value, "" if step.action is Action.NOTHING else "yellow")
            more = "" if step.action is Action.NOTHING else changes_of(row, step.before)
            more += f" ({step.warning})" if step.warning else ""
        rows.append([str(row.number), row.site_tag, row.category, str(row.valid_on or NOTHING), what, more])
    output.table(
        ("ROW", "SITE", "CATEGORY", "DAY (UTC)", "WHAT", "CHANGES"), rows, empty="The file has no row."
    )


def _ended(output: Output, steps: list[Step], told: str, *, code: int) -> int:
    if output.as_json:
        done = sum(step.became == "done" for step in steps)
        output.json({"done": done, "rows": [step.as_json() for step in steps]})
    else:
        output.line(told)
    return code


for _name, _function in (
    ("list", listing),
    ("show", show),
    ("push", push),
    ("pull", pull),
    ("delete", delete),
):
    command(app, _name)(_function)
