"""When each management token was last used, at no cost to the request that uses it.

A process remembers who came, and tells Redis every half minute from a thread beside the requests; a task
brings it into the database once a minute. What is lost on the way, or while Redis is away, is known from the
next use.
"""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from uuid import UUID

import structlog
from django.conf import settings
from django.db.models import Q

from sites_app.models import ManagementToken
from smartgrid import live

log = structlog.stdlib.get_logger(__name__)

_KEY = "sgm:token_used"
# Seconds after which Redis forgets what no task has fetched.
EXPIRES_S = 7 * 86_400

_TAKE_ALL = """
local held = redis.call('HGETALL', KEYS[1])
redis.call('DEL', KEYS[1])
return held
"""


class Uses:
    """The tokens used in this process since Redis was last told."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._used: dict[UUID, float] = {}
        self._told_at = 0.0

    def add(self, token_id: UUID, *, at: float, every_s: float) -> dict[UUID, float] | None:
        """Remember one; what is to be told now, where it is time to."""
        with self._lock:
            self._used[token_id] = at
            if 0 <= at - self._told_at < every_s:
                return None
            told, self._used, self._told_at = self._used, {}, at
            return told


_uses = Uses()


def token_used(token_id: UUID, *, at: float) -> None:
    """Remember that this token was used. `at`: seconds since 1970."""
    every_s = settings.SGM_TOKEN_USE_EVERY_S
    if not every_s:
        return
    if (told := _uses.add(token_id, at=at, every_s=every_s)) is not None:
        # Redis may take a second to say that it is away, which nobody's request waits for.
        threading.Thread(target=token_uses_tell, args=(told,), name="token uses", daemon=True).start()


def token_uses_tell(used: dict[UUID, float]) -> None:
    """Tell Redis; where it is away nobody learns of these uses."""
    fields = {str(token_id): f"{at:.0f}" for token_id, at in used.items()}
    try:
        live.hash_write(_KEY, fields, expires_s=EXPIRES_S)
    except live.LiveUnavailable as error:
        log.info("token_uses_lost", number=len(used), error=error.detail)


def token_uses_keep() -> int:
    """Bring what Redis was told into the database; how many rows it changed."""
    try:
        held = live.script_run(_TAKE_ALL, keys=[_KEY], args=[])
    except live.LiveUnavailable:
        return 0
    changed = 0
    for token_id, seconds in zip(held[::2], held[1::2], strict=True):
        at = datetime.fromtimestamp(int(seconds), UTC)
        older = Q(last_used_at__isnull=True) | Q(last_used_at__lt=at)
        changed += ManagementToken.objects.filter(older, pk=token_id).update(last_used_at=at)
    return changed
