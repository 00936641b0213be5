"""The arrows between packages, proved by importing, and the proof that a broken contract is noticed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("smartgrid", "sites_app", "devices_app", "schedules_app", "control_app", "edge")
# What `edge.core` may not even load by way of something else.
IMPURE = {"asyncio", "socket", "selectors", "ssl", "sqlite3", "logging", "random", "subprocess", "threading"}
CENTRAL = {"django", "celery", "kombu", "rest_framework", "redis", "smartgrid", "sites_app", "devices_app"}


def loaded_by(statement: str) -> set[str]:
    """The names of all modules that this statement brings into a fresh interpreter."""
    code = f"import sys; before = set(sys.modules); {statement}; print(' '.join(set(sys.modules) - before))"
    said = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}; {code}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(said.stdout.split())


def top_level(modules: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules}


def test_core_is_made_of_itself_and_of_pure_standard_library():
    core = ROOT / "edge" / "core"
    modules = sorted(f"edge.core.{path.stem}" for path in core.glob("*.py") if path.stem != "__init__")
    loaded = top_level(loaded_by(f"import {', '.join(modules)}"))
    assert not loaded - set(sys.stdlib_module_names) - {"edge"}
    assert not loaded & IMPURE


@pytest.mark.parametrize("package", ["edge.wire.codec, edge.wire.topics", "edge.profiles.loader"])
def test_what_both_sides_share_loads_nothing_of_central(package: str):
    assert not top_level(loaded_by(f"import {package}")) & CENTRAL


def test_node_runs_without_central(tmp_path: Path):
    # A site computer has neither Django nor Celery: hide them, and see that the node still loads.
    for name in ("django", "celery", "rest_framework", "redis"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('not installed at a site')\n")
    loaded = loaded_by(f"sys.path.insert(0, {str(tmp_path)!r}); import edge.runtime.node")
    assert not top_level(loaded) & CENTRAL


def lint_imports(directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    client = ROOT / "clients" / "python" / "sgm"
    shutil.copytree(client, tmp_path / "sgm", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_contracts_hold():
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("edge/core/instant.py", "import socket", "The core is pure"),
        ("edge/core/instant.py", "import edge.wire.topics", "Edge layers"),
        ("edge/wire/topics.py", "import django", "The edge knows neither central"),
        ("sites_app/services.py", "import devices_app.models", "Apps never look upwards"),
        ("sites_app/services.py", "import edge.drivers.base", "Central uses of the edge only"),
        ("edge/runtime/cycle.py", "import pymodbus", "pymodbus is known to one driver module"),
        ("sgm/plans.py", "import edge.core.schedule", "The client knows the API"),
        ("sgm/client.py", "import httpx", "httpx is known to one module of the client"),
    ],
)
def test_broken_contract_fails_the_lint(copy: Path, module: str, line: str, contract: str):
    path = copy / module
    path.write_text(path.read_text() + f"\n{line}\n")
    done = lint_imports(copy)
    assert done.returncode != 0
    assert contract in done.stdout.partition("Broken contracts")[2], done.stdout
