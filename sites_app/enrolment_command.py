"""What somebody types at a site to make its computer a node."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from datetime import datetime

from django.conf import settings

from sites_app import identity
from sites_app.models import Node
from smartgrid.errors import Conflict


@dataclass(frozen=True, slots=True)
class EnrolmentCommands:
    """Lines for a shell; the first holds the token, which is kept nowhere."""

    enrol: str
    run: str
    expires_at: datetime


def enrolment_commands(*, node: Node, now: datetime, by: str) -> EnrolmentCommands:
    """Draw a token for this node, and say how to use it. `SgmError` where nodes cannot be enrolled here."""
    if not settings.SGM_ENROL_URL or not settings.SGM_NODES_MQTT_URL:
        raise Conflict(
            "SGM_ENROL_URL and SGM_NODES_MQTT_URL are not set: set where nodes go, then enrol again.",
            code="enrolment_not_set_up",
        )
    identity.nodes_root()
    issued = identity.enrolment_token_issue(node=node, now=now, by=by)
    state = shlex.quote(f"/var/lib/sgm/{node.name}")
    return EnrolmentCommands(
        enrol=f"python -m edge enroll {shlex.quote(settings.SGM_ENROL_URL)} {issued.value} --state {state}",
        run=f"python -m edge node --state {state}",
        expires_at=issued.expires_at,
    )
