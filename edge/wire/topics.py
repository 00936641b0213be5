"""Each topic name of the wire, written once.

A node owns the branch `sgm/v1/{tenant}/{node}/`. It writes the *up* topics and reads the *down* topics of
its own branch and nothing else; the broker's pattern ACL (`acl_lines`) says so in the broker's words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

ROOT = "sgm/v1"

# One level of a topic: no separator, no wildcard, nothing that would need escaping.
LEVEL = re.compile(r"[A-Za-z0-9_-]{1,64}")

UP = ("rsp/+", "reported", "presence", "hb", "tele", "log")
DOWN = ("cmd/#", "desired/#", "logack")

# What central's processes subscribe to, over all tenants and nodes.
ALL_PRESENCE = f"{ROOT}/+/+/presence"
ALL_HEARTBEATS = f"{ROOT}/+/+/hb"
ALL_REPORTED = f"{ROOT}/+/+/reported"
ALL_LOGS = f"{ROOT}/+/+/log"
ALL_TELEMETRY = f"{ROOT}/+/+/tele"


def shared(topic_filter: str, *, group: str) -> str:
    """The subscription by which all members of a group share what a topic filter brings.

    The broker gives each message to one member; none gets retained messages (MQTT 5, 4.8.2). mosquitto lets
    anybody join a group, and what it gives to a member who may not read it is lost for the others: the name
    of a group must be known to its members alone.
    """
    return f"$share/{group}/{topic_filter}"


def responses_to(worker: str) -> str:
    """The subscription of one Celery worker process: answers addressed to it, from every node."""
    return f"{ROOT}/+/+/rsp/{worker}"


@dataclass(frozen=True, slots=True)
class NodeTopics:
    """The branch of one node."""

    tenant: str
    node: str

    def __post_init__(self) -> None:
        for level in (self.tenant, self.node):
            if not LEVEL.fullmatch(level):
                raise ValueError(
                    f"{level!r} cannot be a topic level: letters, digits, '-' and '_', at most 64"
                )

    @property
    def base(self) -> str:
        return f"{ROOT}/{self.tenant}/{self.node}"

    def command(self, op: str) -> str:
        return f"{self.base}/cmd/{op}"

    @property
    def commands(self) -> str:
        return f"{self.base}/cmd/+"

    @property
    def desired(self) -> str:
        return f"{self.base}/desired/#"

    def document(self, name: str) -> str:
        """The topic of a desired document: `manifest`, `config`, `schedule/2026-11-22/inverter`."""
        return f"{self.base}/desired/{name}"

    def response(self, worker: str) -> str:
        return f"{self.base}/rsp/{worker}"

    def owns_response(self, topic: str) -> bool:
        """Tell whether a Response Topic is one this node may answer on."""
        prefix = f"{self.base}/rsp/"
        return topic.startswith(prefix) and bool(LEVEL.fullmatch(topic.removeprefix(prefix)))

    @property
    def reported(self) -> str:
        return f"{self.base}/reported"

    @property
    def presence(self) -> str:
        return f"{self.base}/presence"

    @property
    def heartbeat(self) -> str:
        return f"{self.base}/hb"

    @property
    def telemetry(self) -> str:
        return f"{self.base}/tele"

    @property
    def log(self) -> str:
        return f"{self.base}/log"

    @property
    def log_ack(self) -> str:
        return f"{self.base}/logack"

    def leaf(self, topic: str) -> str | None:
        """What stands behind this node's prefix, e.g. `cmd/setpoint`; None for another node's topic."""
        prefix = self.base + "/"
        return topic.removeprefix(prefix) if topic.startswith(prefix) else None


def owner(topic: str) -> tuple[NodeTopics, str] | None:
    """Whose topic this is and what stands behind the prefix; None for anything not of this wire."""
    parts = topic.split("/", 4)
    if len(parts) != 5 or "/".join(parts[:2]) != ROOT:  # noqa: PLR2004 - sgm / v1 / tenant / node / leaf
        return None
    try:
        return NodeTopics(parts[2], parts[3]), parts[4]
    except ValueError:
        return None


def acl_lines(*, central_users: dict[str, tuple[tuple[str, str], ...]]) -> list[str]:
    """The broker's access list, in mosquitto's words, for a broker where all come in by one door."""
    return [*node_acl_lines(), *central_acl_lines(central_users)]


def node_acl_lines(*, denied: Iterable[str] = ()) -> list[str]:
    """What nodes may do: one list for any number of them.

    `pattern` lines hold for every user, with the user name (the node's UUID) put in for `%u`. The denied may
    nothing: mosquitto looks at denials before all else, for a session that is open as well.
    """
    lines = [f"pattern write {ROOT}/+/%u/{leaf}" for leaf in UP]
    lines += [f"pattern read {ROOT}/+/%u/{leaf}" for leaf in DOWN]
    for node in sorted(denied):
        lines += ["", f"user {node}", "topic deny #"]
    return lines


def central_acl_lines(rights: Mapping[str, Sequence[tuple[str, str]]]) -> list[str]:
    """What central's processes may do, as user -> ((access, topic), ...)."""
    lines: list[str] = []
    for user, theirs in rights.items():
        lines += ["", f"user {user}", *(f"topic {access} {topic}" for access, topic in theirs)]
    return lines


CENTRAL_RIGHTS: dict[str, tuple[tuple[str, str], ...]] = {
    # A worker sends commands and desired state, and reads the answers addressed to it.
    "central-worker": (
        ("write", f"{ROOT}/+/+/cmd/#"),
        ("write", f"{ROOT}/+/+/desired/#"),
        ("read", f"{ROOT}/+/+/rsp/#"),
    ),
    # The inbox reads all that nodes send unasked, acknowledges their logs and publishes desired state at a
    # node's birth.
    "central-inbox": (
        ("read", ALL_PRESENCE),
        ("read", ALL_HEARTBEATS),
        ("read", ALL_REPORTED),
        ("read", ALL_LOGS),
        ("read", ALL_TELEMETRY),
        ("write", f"{ROOT}/+/+/logack"),
        ("write", f"{ROOT}/+/+/desired/#"),
    ),
}
