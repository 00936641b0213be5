"""Whose topic is whose, and the access list that says so to the broker."""

from __future__ import annotations

import pytest
from hypothesis import given, settings, strategies as st

from edge.wire.topics import (
    ALL_HEARTBEATS,
    ALL_LOGS,
    ALL_PRESENCE,
    ALL_REPORTED,
    ALL_TELEMETRY,
    CENTRAL_RIGHTS,
    NodeTopics,
    acl_lines,
    owner,
    responses_to,
)

NODE = "1c1f6d3e-2a90-4d8f-8a0e-6c5d4e3f2a1b"
OTHER = "2d2f6d3e-2a90-4d8f-8a0e-6c5d4e3f2a1b"
BASE = f"sgm/v1/acme/{NODE}"
ours = NodeTopics("acme", NODE)

UP = [ours.response("worker-1"), ours.reported, ours.presence, ours.heartbeat, ours.telemetry, ours.log]
DOWN = [
    ours.command("setpoint"),
    ours.document("manifest"),
    ours.document("schedule/2026-03-02/inverter"),
    ours.log_ack,
]


def matches(pattern: str, topic: str) -> bool:
    """MQTT 5, section 4.7: `+` stands for one level, a trailing `#` for all that follow."""
    wanted, levels = pattern.split("/"), topic.split("/")
    if wanted[-1] == "#":
        return len(levels) >= len(wanted) - 1 and all(
            want in ("+", level) for want, level in zip(wanted[:-1], levels, strict=False)
        )
    return len(wanted) == len(levels) and all(
        want in ("+", level) for want, level in zip(wanted, levels, strict=True)
    )


def may(user: str, access: str, topic: str) -> bool:
    """Judge by the list as mosquitto reads it: patterns for all, topics for the user above them."""
    section = ""
    for line in acl_lines(central_users=CENTRAL_RIGHTS):
        if line.startswith("user "):
            section = line.removeprefix("user ")
            continue
        kind, _, rest = line.partition(" ")
        granted, _, pattern = rest.partition(" ")
        if kind == "pattern":
            pattern = pattern.replace("%u", user)
        elif section != user:
            continue
        if granted == access and matches(pattern, topic):
            return True
    return False


def test_topics_are_spelled_as_the_design_spells_them():
    assert [*UP, *DOWN] == [
        f"{BASE}/rsp/worker-1",
        f"{BASE}/reported",
        f"{BASE}/presence",
        f"{BASE}/hb",
        f"{BASE}/tele",
        f"{BASE}/log",
        f"{BASE}/cmd/setpoint",
        f"{BASE}/desired/manifest",
        f"{BASE}/desired/schedule/2026-03-02/inverter",
        f"{BASE}/logack",
    ]


@pytest.mark.parametrize("topic", [*UP, *DOWN])
def test_owner_is_read_from_the_topic(topic):
    assert owner(topic) == (ours, topic.removeprefix(BASE + "/"))
    assert ours.leaf(topic) == topic.removeprefix(BASE + "/")


@pytest.mark.parametrize(
    "topic",
    ["", "sgm", "sgm/v1", "sgm/v1/acme", BASE, f"sgm/v2/acme/{NODE}/hb", f"x/v1/acme/{NODE}/hb", "sgm/v1//n/hb",
     "sgm/v1/+/n/hb", "$SYS/broker/uptime/a/b", "sgm/v1/acme/n\n/hb"],
)  # fmt: skip
def test_topic_of_another_wire_has_no_owner(topic):
    assert owner(topic) is None


@settings(deadline=None, derandomize=True)
@given(topic=st.text())
def test_any_topic_has_an_owner_or_none(topic):
    assert owner(topic) is None or topic.startswith("sgm/v1/")


@pytest.mark.parametrize("level", ["", "a/b", "+", "#", "a b", "ä", "n\n", "x" * 65])
def test_name_that_cannot_be_a_level_is_refused(level):
    with pytest.raises(ValueError, match="cannot be a topic level"):
        NodeTopics(level, NODE)
    with pytest.raises(ValueError, match="cannot be a topic level"):
        NodeTopics("acme", level)


@pytest.mark.parametrize(
    ("topic", "is_ours"),
    [
        (f"{BASE}/rsp/worker-1", True),
        (f"{BASE}/rsp/", False),
        (f"{BASE}/rsp/a/b", False),
        (f"{BASE}/rsp/+", False),
        (f"{BASE}/rsp/worker-1\n", False),
        (f"{BASE}/reported", False),
        (f"sgm/v1/acme/{OTHER}/rsp/worker-1", False),
        ("", False),
    ],
)
def test_node_answers_only_on_response_topics_of_its_own(topic, is_ours):
    assert ours.owns_response(topic) is is_ours


def test_topic_of_another_node_is_no_leaf_of_ours():
    assert ours.leaf(NodeTopics("acme", OTHER).heartbeat) is None
    assert ours.leaf(f"{BASE}0/hb") is None


@pytest.mark.parametrize("topic", [ours.command("setpoint"), ours.command("ping")])
def test_node_subscribes_to_its_commands_and_documents(topic):
    assert matches(ours.commands, topic)
    assert matches(ours.desired, ours.document("schedule/2026-03-02/inverter"))


# --- the access list ------------------------------------------------------------------------------


def test_access_list_is_written_in_mosquittos_words():
    assert acl_lines(central_users={"central-x": (("read", "sgm/v1/+/+/hb"),)}) == [
        "pattern write sgm/v1/+/%u/rsp/+",
        "pattern write sgm/v1/+/%u/reported",
        "pattern write sgm/v1/+/%u/presence",
        "pattern write sgm/v1/+/%u/hb",
        "pattern write sgm/v1/+/%u/tele",
        "pattern write sgm/v1/+/%u/log",
        "pattern read sgm/v1/+/%u/cmd/#",
        "pattern read sgm/v1/+/%u/desired/#",
        "pattern read sgm/v1/+/%u/logack",
        "",
        "user central-x",
        "topic read sgm/v1/+/+/hb",
    ]


@pytest.mark.parametrize("topic", UP)
def test_node_writes_its_own_up_topics_and_nobody_elses(topic):
    assert may(NODE, "write", topic)
    assert not may(NODE, "read", topic)
    assert not may(OTHER, "write", topic)
    assert not may(OTHER, "read", topic)


@pytest.mark.parametrize("topic", DOWN)
def test_node_reads_its_own_down_topics_and_nobody_elses(topic):
    assert may(NODE, "read", topic)
    assert not may(NODE, "write", topic)
    assert not may(OTHER, "read", topic)
    assert not may(OTHER, "write", topic)


@pytest.mark.parametrize(
    ("user", "access", "topics"),
    [
        ("central-worker", "write", [ours.command("setpoint"), ours.document("config")]),
        ("central-worker", "read", [ours.response("worker-1")]),
        ("central-inbox", "read", [ours.presence, ours.heartbeat, ours.reported, ours.log, ours.telemetry]),
        ("central-inbox", "write", [ours.log_ack, ours.document("manifest")]),
    ],
)
def test_central_may_do_its_work(user, access, topics):
    assert all(may(user, access, topic) for topic in topics)


@pytest.mark.parametrize("topic", [ours.command("setpoint"), ours.command("release")])
def test_inbox_commands_no_device(topic):
    assert not may("central-inbox", "write", topic)


@pytest.mark.parametrize("topic", UP)
@pytest.mark.parametrize("user", CENTRAL_RIGHTS)
def test_central_never_speaks_for_a_node(user, topic):
    assert not may(user, "write", topic)


@pytest.mark.parametrize(
    ("subscription", "topic"),
    [
        (ALL_PRESENCE, ours.presence),
        (ALL_HEARTBEATS, ours.heartbeat),
        (ALL_REPORTED, ours.reported),
        (ALL_LOGS, ours.log),
        (ALL_TELEMETRY, ours.telemetry),
        (responses_to("worker-1"), ours.response("worker-1")),
    ],
)
def test_centrals_subscriptions_meet_what_nodes_send(subscription, topic):
    assert matches(subscription, topic)
    assert [other for other in UP if matches(subscription, other)] == [topic]
