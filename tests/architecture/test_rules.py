"""The index of the rules of control: every rule has tests, and every test it names is there and is run."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
INDEX = ROOT / "docs" / "rules.md"
RULES = range(1, 23)


def listed() -> dict[int, list[str]]:
    """The tests of each rule, as the index names them."""
    rows = re.findall(r"^\| (\d+) \|[^|]*\|([^|]*)\|$", INDEX.read_text(), re.MULTILINE)
    return {int(rule): re.findall(r"`([^`]+)`", tests) for rule, tests in rows}


@cache
def collected(path: str) -> set[str]:
    """What pytest collects by name from a module: test functions, and the cases of state machines."""
    found = set()
    for node in ast.parse((ROOT / path).read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return {name for name in found if name.startswith(("test_", "Test"))}


def test_every_rule_is_listed_once_with_tests_of_its_own():
    rules = re.findall(r"^\| (\d+) \|", INDEX.read_text(), re.MULTILINE)
    assert [int(rule) for rule in rules] == list(RULES)
    assert all(listed()[rule] for rule in RULES)


@pytest.mark.parametrize("rule", RULES)
def test_tests_of_a_rule_exist(rule):
    for node_id in listed()[rule]:
        path, _, name = node_id.partition("::")
        assert name in collected(path), f"rule {rule}: {node_id}"


def test_tests_of_all_rules_at_once_exist():
    for node_id in re.findall(r"`(tests/[^`]+::[^`]+)`", INDEX.read_text()):
        path, _, name = node_id.partition("::")
        assert name in collected(path), node_id


def test_name_that_no_module_has_is_noticed():
    assert "test_name_that_nobody_has_given" not in collected("tests/core/test_arbitration.py")
