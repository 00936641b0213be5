"""When the demo's nodes count as ready: once they say that they run all that they were sent."""

from __future__ import annotations

import pytest

from edge.wire import codec
from edge.wire.messages import AppliedDocument, Heartbeat, Reported
from edge.wire.topics import NodeTopics
from smartgrid.demo.readiness import NodeWatch

NODE = "6f1c1f60-6c5e-4b8e-9d35-1f2f0f6f3b11"
TOPICS = NodeTopics("demo", NODE)
APPLIED = AppliedDocument(v=1, status="applied")


class Told:
    """A watch that has heard these things of one node."""

    def __init__(self) -> None:
        self.watch = NodeWatch(port=1, username="", password="")

    def heartbeat(self, session: str = "s1", *, retained: bool = False) -> None:
        beat = Heartbeat(session=session, seq=1, mono_ms=1, wall="2026-03-02T10:00:00.000000Z", fresh="f")
        self.watch.note(TOPICS.heartbeat, codec.encode(beat), retained=retained)

    def report(self, session: str = "s1", **said: object) -> None:
        told = {"documents": {"config": APPLIED}, **said}
        report = Reported(
            session=session,
            boot="b",
            store="st",
            epoch=1,
            manifest_version=1,
            at="2026-03-02T10:00:00.000000Z",
            clock="trusted",
            **told,  # type: ignore[arg-type]
        )
        self.watch.note(TOPICS.reported, codec.encode(report), retained=True)

    @property
    def missing(self) -> str | None:
        return self.watch.missing((NODE,)).get(NODE)


@pytest.fixture
def told() -> Told:
    return Told()


def test_node_is_ready_once_it_runs_its_configuration_in_the_session_of_its_heartbeat(told):
    assert told.missing == "no heartbeat"
    told.heartbeat()
    told.report(session="s0")
    assert told.missing == "has not reported what it runs"
    told.report(documents={})
    assert told.missing == "runs no configuration yet"
    told.report()
    assert told.missing is None


def test_heartbeat_that_the_broker_had_kept_is_nobodys_sign_of_life(told):
    told.heartbeat(retained=True)
    told.report()
    assert told.missing == "no heartbeat"


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (
            {"documents": {"config": AppliedDocument(v=1, status="failed", error="hash")}},
            "configuration failed: hash",
        ),
        ({"devices_refused": {"INV_01": "no host"}}, "refused devices: INV_01: no host"),
        ({"loops_refused": {"GRID": "no meter", "B": "x"}}, "refused loops: GRID: no meter; B: x"),
    ],
)
def test_node_that_refuses_what_it_was_sent_is_not_ready_and_says_what(told, said, words):
    told.heartbeat()
    told.report(**said)
    assert told.missing == words
