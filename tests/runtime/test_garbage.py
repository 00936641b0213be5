"""The cycle collector of a node: long-lived objects are set aside once a configuration has settled."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from edge.runtime.garbage import SETTLED_AFTER_TURNS, YOUNG, Collector


@pytest.fixture(autouse=True)
def collector_as_it_was() -> Iterator[None]:
    threshold = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*threshold)


def test_what_is_there_is_set_aside_when_a_configuration_has_settled():
    collector = Collector()
    for _ in range(SETTLED_AFTER_TURNS - 1):
        collector.turned()
    assert gc.get_freeze_count() == 0

    collector.turned()

    assert gc.get_freeze_count() > 0
    assert gc.get_threshold()[0] == YOUNG


def test_a_change_of_configuration_lets_the_dead_go():
    collector = Collector()
    for _ in range(SETTLED_AFTER_TURNS):
        collector.turned()

    collector.loading()
    assert gc.get_freeze_count() == 0
    for _ in range(SETTLED_AFTER_TURNS):
        collector.turned()

    assert gc.get_freeze_count() > 0
