from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import structlog

from tests.simulation.machine import memory, silence
from tests.simulation.world import World, world as a_world


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """A simulated day would fill the log with what nobody reads."""
    before = structlog.get_config()
    silence()
    yield
    structlog.configure(**before)


@pytest.fixture
def world() -> Iterator[World]:
    """A site without devices yet."""
    with ExitStack() as stack:
        directory = stack.enter_context(TemporaryDirectory(prefix="simulation-", dir=memory()))
        yield stack.enter_context(a_world(Path(directory)))
