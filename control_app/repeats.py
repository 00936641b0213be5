"""A request that comes again is carried out once: what an `Idempotency-Key` promises.

The key is kept with the request that it came with, in the row that is written for it anyway: so the key is
taken in the very transaction that records the request, and two at once cannot both take it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
import structlog
from django.utils import timezone

from control_app.models import ControlRequest
from sites_app.selectors import site_get
from smartgrid.api.principal import Principal
from smartgrid.errors import Conflict, InProgress, Invalid

log = structlog.stdlib.get_logger(__name__)

HEADER = "Idempotency-Key"
# For at least so long the same answer is given again.
KEPT = timedelta(hours=24)
ROWS_AT_ONCE = 5000

_KEY = re.compile(r"[!-~]{1,255}")
_canonical = msgspec.json.Encoder(order="deterministic")


@dataclass(frozen=True, slots=True)
class RequestKey:
    """A key as one client with one token uses it (`name`), and what it stands for here (`digest`)."""

    name: str
    digest: str


def request_key(
    text: str | None, *, principal: Principal, method: str, path: str, body: Mapping[str, Any]
) -> RequestKey | None:
    """The key that a request came with; None where it has none, `Invalid` where that is no key."""
    if text is None:
        return None
    if not _KEY.fullmatch(text):
        raise Invalid.field(HEADER, "1 to 255 visible ASCII characters are expected")
    return RequestKey(
        name=_digest([principal.client_id, principal.key, text]), digest=_digest([method, path, dict(body)])
    )


def _digest(parts: list[Any]) -> str:
    return hashlib.sha256(_canonical.encode(parts)).hexdigest()


def earlier_result(*, principal: Principal, site_id: UUID, key: RequestKey) -> dict[str, Any] | None:
    """What was answered when this request came first, as it is known by now; None where it did not.

    `Conflict` where the key stands for another request, `InProgress` where that one is under way, `NotFound`
    where its site is out of sight by now.
    """
    row = (
        ControlRequest.objects.filter(idempotency=key.name)
        .values_list("digest", "answer", "deadline")
        .first()
    )
    if row is None:
        return None
    digest, answer, deadline = row
    if digest != key.digest:
        raise Conflict(
            f"This {HEADER} was used for another request. A new request takes a new key.",
            code="idempotency_key_reused",
        )
    site_get(principal=principal, site_id=site_id)
    if not answer:
        raise in_progress(deadline)
    return answer_read(answer)


def in_progress(deadline: datetime | None = None) -> InProgress:
    """The refusal of a request that is under way until `deadline`, where that is known."""
    left_s = 1.0 if deadline is None else (deadline - timezone.now()).total_seconds()
    return InProgress(
        f"The request with this {HEADER} is under way. Ask again for its answer.",
        code="idempotency_in_progress",
        retry_after_s=max(1.0, left_s),
    )


def answer_write(result: Mapping[str, Any]) -> str:
    """As it is kept: a JSON column of the database would put names into an order of its own."""
    return msgspec.json.encode(result).decode()


def answer_read(answer: str) -> dict[str, Any]:
    return msgspec.json.decode(answer, type=dict[str, Any])


def keys_forget(*, now: datetime, at_once: int = ROWS_AT_ONCE) -> int:
    """Let go of the keys of requests from more than 24 hours ago; how many. `at_once` to a transaction."""
    old = ControlRequest.objects.filter(idempotency__isnull=False, created_at__lt=now - KEPT)
    forgotten = 0
    while keys := list(old.order_by().values_list("pk", flat=True)[:at_once]):
        rows = ControlRequest.objects.filter(pk__in=keys)
        forgotten += rows.update(idempotency=None, digest="", answer="")
    if forgotten:
        log.info("idempotency_keys_forgotten", count=forgotten)
    return forgotten
