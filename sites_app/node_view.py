"""A node as somebody sees it who wants to know whether it is well: what is heard of it, what it has."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sites_app.models import Node, NodeCertificate, NodeDocument
from sites_app.presence import presence_read
from smartgrid import live

# As many of its certificates are shown, the newest first.
CERTIFICATES_SHOWN = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeHeard:
    """What Redis knows of a node; ages in seconds, None where never."""

    is_reachable: bool
    is_healthy: bool
    heartbeat_age_s: float | None
    pong_age_s: float | None
    why_not: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReported:
    """What its last report says; None or empty where it does not say."""

    clock: str
    clock_bound_s: float | None
    epoch: int | None
    manifest_version: int | None
    devices_refused: dict[str, str]
    loops_refused: dict[str, str]
    alarms: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class DocumentLine:
    """A document: what it is to be, and what the node says of it."""

    document: NodeDocument
    is_published: bool


@dataclass(frozen=True, slots=True)
class CertificateLine:
    certificate: NodeCertificate
    # A word: in use, not seen in use, ended, revoked.
    state: str
    is_good: bool


def node_heard(node: Node, *, now: datetime) -> NodeHeard | None:
    """What is heard of it at this moment; None where Redis does not answer, so that nothing is known."""
    try:
        presence = presence_read([node.pk])[node.pk]
    except live.LiveUnavailable:
        return None
    at = now.timestamp()
    is_reachable = presence.is_reachable(now=at)
    return NodeHeard(
        is_reachable=is_reachable,
        is_healthy=presence.is_healthy(now=at),
        heartbeat_age_s=max(0.0, at - presence.hb_at) if presence.hb_at else None,
        pong_age_s=max(0.0, at - presence.pong_at) if presence.pong_at else None,
        why_not="" if is_reachable else presence.why_not(now=at),
    )


def node_reported(node: Node) -> NodeReported | None:
    """Its last report, whenever that was (`last_reported_at`); None where there was none."""
    said = node.last_reported
    if not said:
        return None
    return NodeReported(
        clock=said.get("clock", ""),
        clock_bound_s=said.get("clock_bound_s"),
        epoch=said.get("epoch"),
        manifest_version=said.get("manifest_version"),
        devices_refused=said.get("devices_refused", {}),
        loops_refused=said.get("loops_refused", {}),
        alarms=list(said.get("alarms", [])),
    )


def node_documents(node: Node) -> list[DocumentLine]:
    """Its documents by name; what has left the manifest and is not told to the broker yet among them."""
    return [
        DocumentLine(
            row,
            not row.dropped and (row.published_epoch, row.published_version) == (node.epoch, row.version),
        )
        for row in node.documents.defer("body").order_by("name")
    ]


def node_certificates(node: Node, *, now: datetime) -> list[CertificateLine]:
    """Its newest certificates."""
    lines = []
    for row in node.certificates.defer("pem").order_by("-issued_at")[:CERTIFICATES_SHOWN]:
        if row.revoked_at is not None:
            state = (
                f"revoked: {row.reason}"
                if row.evicted_at
                else f"revoked: {row.reason}; may still have a session"
            )
        elif row.not_after <= now:
            state = "ended"
        else:
            state = "in use" if row.confirmed_at else "not seen in use"
        lines.append(CertificateLine(row, state, is_good=row.revoked_at is None and row.not_after > now))
    return lines
