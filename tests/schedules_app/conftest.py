"""A day on which all of this happens, and sites with something to plan."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
import time_machine

NOW = datetime(2026, 11, 23, 10, 2, tzinfo=UTC)


@pytest.fixture
def clock() -> Iterator[time_machine.Traveller]:
    """The wall clock, standing at ten o'clock on a Monday until a test moves it."""
    with time_machine.travel(NOW, tick=False) as coordinates:
        yield coordinates
