"""What people and programs are shown: tables and lines, or JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sgm.cli.exits import advice_for
from sgm.errors import ApiError, SgmError

Cell = str | Text
NOTHING = "-"


def clean(text: str) -> str:
    """Text of others, as it may be shown: what would steer the terminal is spelled out."""
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)


def number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.10g}"


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to the command, for which that somebody has seen enough is no failure."""
        raise BrokenPipeError


def _console(*, stderr: bool = False) -> Console:
    return _Console(stderr=stderr, highlight=False, markup=False, emoji=False)


@dataclass(slots=True)
class Output:
    """Answers go to stdout, all else to stderr. Colours only for a terminal, and not with NO_COLOR."""

    as_json: bool = False
    utc: bool = False
    out: Console = field(default_factory=_console)
    err: Console = field(default_factory=lambda: _console(stderr=True))

    @property
    def is_live(self) -> bool:
        """Tell whether somebody looks at a terminal that can be drawn on."""
        return not self.as_json and self.out.is_terminal

    @property
    def may_ask(self) -> bool:
        return self.is_live and sys.stdin.isatty()

    def json(self, content: Any) -> None:
        print(json.dumps(content, indent=2), flush=True)  # noqa: T201 - this is where output goes

    def json_line(self, content: Any) -> None:
        """One of many, as they come."""
        print(json.dumps(content), flush=True)  # noqa: T201

    def text(self, content: str) -> None:
        """What goes into a file as it is."""
        print(content, end="", flush=True)  # noqa: T201

    def line(self, text: Cell = "") -> None:
        self.out.print(_text(text), soft_wrap=True)
        self.out.file.flush()

    def note(self, text: str) -> None:
        """What is good to know, but no part of the answer."""
        self.err.print(Text(clean(text), style="dim"), soft_wrap=True)

    def table(self, headers: Sequence[str], rows: Iterable[Sequence[Cell]], *, empty: str) -> None:
        shown = [[_text(cell) for cell in row] for row in rows]
        if not shown:
            self.note(empty)
            return
        if self.out.is_terminal:
            self.out.print(table_of(headers, shown))
            return
        # For a file or a pipe: whole, however wide.
        lines = [list(headers), *([cell.plain for cell in row] for row in shown)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(headers))]
        for line in lines:
            padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
            self.out.print(Text("  ".join(padded).rstrip()), soft_wrap=True)

    def when(self, at: datetime | None) -> str:
        """A moment in the zone of this computer, or in UTC if that was asked for."""
        if at is None:
            return NOTHING
        if self.utc:
            return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        return at.astimezone().strftime("%Y-%m-%d %H:%M:%S")

    def clock(self, at: datetime) -> str:
        """A moment of today."""
        return self.when(at).partition(" ")[2]

    @property
    def zone(self) -> str:
        return "UTC" if self.utc else datetime.now().astimezone().tzname() or "local"

    def error(self, error: SgmError) -> None:
        """One line: what is wrong, what can be done, and where the logs tell more."""
        if self.as_json:
            print(json.dumps({"error": _error_body(error)}), file=sys.stderr)  # noqa: T201
            return
        parts = [str(error)]
        if isinstance(error, ApiError):
            parts += [
                f"{name}: {texts[0]}"
                for name, texts in list(error.errors.items())[:5]
                if texts and texts[0] not in error.detail
            ]
        parts += [advice_for(error)]
        if isinstance(error, ApiError) and error.request_id:
            parts.append(f"(request {error.request_id})")
        self.err.print(Text(clean("sgm: " + " ".join(part for part in parts if part)), "red"), soft_wrap=True)


def table_of(headers: Sequence[str], rows: Iterable[Sequence[Text]]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for header in headers:
        table.add_column(header, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _text(cell: Cell) -> Text:
    return cell if isinstance(cell, Text) else Text(clean(cell))


def _error_body(error: SgmError) -> dict[str, Any]:
    body: dict[str, Any] = {"detail": str(error), "kind": type(error).__name__, "advice": advice_for(error)}
    if isinstance(error, ApiError):
        body |= {
            "status": error.status,
            "code": error.code,
            "errors": error.errors,
            "request_id": error.request_id,
            "retry_after_s": error.retry_after_s,
        }
    return body
