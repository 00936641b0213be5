"""docs/api.md leaves nothing out: no path beyond the guide, and no code that an answer may hold."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from edge.wire.messages import Code
from tests.api.examples import EXAMPLES
from tests.api.scope_table import ROWS, Row

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
CENTRAL = ("smartgrid", "sites_app", "devices_app", "schedules_app", "control_app")
PARAMETER = re.compile(r"<\w+:\w+>")
# These never leave through the API: the root of the tree, and what only the console, a command, the enrolment
# of nodes or a driver of theirs is told.
ELSEWHERE = {
    "abandoned",
    "alarm_is_over",
    "authority_exists",
    "authority_unusable",
    "challenge_refused",
    "enrolment_not_set_up",
    "enrolment_refused",
    "error",
    "key_file_unusable",
    "key_known",
    "link_unavailable",
    "not_evicted",
    "probe_under_way",
    "send_unconfirmed",
    "token_unreadable",
    "too_early",
}
OF_PROBES = {Code.UNUSABLE}


def _form(path: str) -> str:
    return "".join(re.escape(part) + r"\{\w+\}" for part in PARAMETER.split(path)).removesuffix(r"\{\w+\}")


def _is_in_guide(row: Row) -> bool:
    path = re.compile(
        "/v1/" + "[^/?]+".join(re.escape(part) for part in PARAMETER.split(row.path)) + r"(\?.*)?"
    )
    return any(example.method == row.method and path.fullmatch(example.path) for example in EXAMPLES)


@pytest.mark.parametrize("row", [row for row in ROWS if not _is_in_guide(row)], ids=lambda row: row.name)
def test_what_is_beyond_the_guide_is_on_the_page(row):
    assert re.search(rf"`[A-Z ]*/v1/{_form(row.path)}`", PAGE), "tell of it in docs/api.md"


def _codes() -> set[str]:
    """Every code that central's modules give to an error: as `code="..."`, or as a class's own."""
    found: set[str] = set()
    for app in CENTRAL:
        for path in sorted((ROOT / app).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                match node:
                    case ast.keyword(arg="code", value=ast.Constant(value=str(code))):
                        found.add(code)
                    case ast.ClassDef(body=body):
                        found |= {
                            str(value)
                            for statement in body
                            for name, value in _assigned(statement)
                            if name == "code" and isinstance(value, str)
                        }
    return found - {""}


def _assigned(statement: ast.stmt) -> list[tuple[str, object]]:
    match statement:
        case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=value)):
            return [(name, value)]
    return []


def test_every_code_of_an_error_is_on_the_page():
    assert {code for code in _codes() - ELSEWHERE if f"`{code}`" not in PAGE} == set()


def test_no_code_is_left_out_that_is_none():
    assert ELSEWHERE - _codes() == set()


def test_every_reason_of_a_device_is_on_the_page():
    assert {code for code in set(Code) - OF_PROBES if f"`{code}`" not in PAGE} == set()
