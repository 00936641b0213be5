"""`sgm loops` and `sgm loop show`: closed loops, and how they stand."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from sgm.cli.exits import OK
from sgm.cli.fleet import SITE
from sgm.cli.output import NOTHING, Cell, clean, number
from sgm.cli.session import Session, command
from sgm.models import Loop, LoopNode

app = typer.Typer(help="One closed loop.", no_args_is_help=True)

LOOP = Annotated[str, typer.Argument(help="The loop's tag or id.")]
_COLOURS = {"tracking": "green", "limiting": "yellow", "manual": "yellow", "stale": "red", "fallback": "red"}
_MODES = {"limit": "export at most the setpoint", "track": "held at the setpoint"}


def register(app: typer.Typer) -> None:
    command(app, "loops")(loops)


def loops(session: Session, site: SITE) -> int:
    """List the closed loops of a site with how they stand."""
    client, output = session.client, session.output
    found = list(client.loops(client.site_find(site).id))
    if output.as_json:
        output.json([one.raw for one in found])
        return OK
    rows: list[list[Cell]] = [
        [
            one.loop_tag,
            _stand(one),
            *(
                [kilowatts(one.live.setpoint_kw), kilowatts(one.live.measured_kw)]
                if one.live is not None
                else [NOTHING, NOTHING]
            ),
            kilowatts(one.export_limit_kw),
            str(len(one.members)),
            one.node.polaris_node_name,
            one.id,
        ]
        for one in found
    ]
    headers = ("LOOP", "STAND", "SETPOINT", "MEASURED", "EXPORT LIMIT", "MEMBERS", "NODE", "ID")
    output.table(headers, rows, empty="It has no closed loop.")
    return OK


def show(session: Session, site: SITE, loop: LOOP) -> int:
    """Show a closed loop: how it stands, what it wants of its members, and how it stood before."""
    client, output = session.client, session.output
    found = client.loop_find(loop, site_id=client.site_find(site).id)
    if output.as_json:
        output.json(found.raw)
        return OK
    output.line(Text.assemble((clean(found.loop_tag), "bold"), "  ", _stand(found), f"  {found.id}"))
    limits = [
        f"{name} at most {kilowatts(limit)}"
        for name, limit in (("export", found.export_limit_kw), ("import", found.import_limit_kw))
        if limit is not None
    ]
    output.line("  " + ", ".join([_MODES.get(found.mode, found.mode), *limits]))
    if found.refused is not None:
        output.line(Text(clean(f"  {found.node.polaris_node_name} cannot use it: {found.refused}"), "red"))
    if found.live is not None:
        live = found.live
        output.line(
            f"  setpoint {kilowatts(live.setpoint_kw)}, measured {kilowatts(live.measured_kw)},"
            f" output {kilowatts(live.output_kw)}, load {kilowatts(live.load_kw)}, {live.age_s:.0f} s ago"
        )
        output.line(f"  {live.reason}" + (f" (bounded by {live.bounded_by})" if live.bounded_by else ""))
    output.line(f"  {_node(found.node)}")
    output.line()
    rows: list[list[Cell]] = [
        [
            one.device_tag,
            kilowatts(one.nominal_kw),
            NOTHING if one.value is None else f"{number(one.value)} %",
            "",
        ]
        for one in found.members
    ]
    rows += [[tag, NOTHING, NOTHING, f"left out: {why}"] for tag, why in found.left_out.items()]
    output.table(("MEMBER", "NOMINAL", "WANTED", ""), rows, empty="It has no member.")
    if found.changes:
        output.line()
        before = [[output.when(one.since), one.stand, one.reason] for one in found.changes]
        output.table((f"SINCE ({output.zone})", "STOOD", "WHY"), before, empty="")
    return OK


def kilowatts(value: float | None) -> str:
    return NOTHING if value is None else f"{number(value)} kW"


def _stand(loop: Loop) -> Text:
    if not loop.enabled:
        return Text("off")
    if loop.refused is not None:
        return Text("refused", "red")
    if loop.live is None:
        return Text("not known")
    return Text(clean(loop.live.stand), _COLOURS.get(loop.live.stand, ""))


def _node(node: LoopNode) -> str:
    if node.healthy is None:
        return f"{node.polaris_node_name} is {'connected' if node.online else 'not connected'}"
    return f"{node.polaris_node_name} is {'healthy' if node.healthy else 'not healthy'}"


command(app, "show")(show)
