"""Who asks too often, counted in Redis for all processes together; without Redis nobody does.

A control request must not fail because the counting does: where Redis is away, everything passes.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from smartgrid import live
from smartgrid.rates import Rate

log = structlog.stdlib.get_logger(__name__)

# Seconds for which a Redis that did not answer is not asked again: each try may take as long as its timeouts.
ASK_AGAIN_S = 5.0
# Seconds after which it is said again that somebody is throttled.
TELL_AGAIN_S = 60.0
NAMES_REMEMBERED = 10_000
# While a bucket is less than half used up, a process lets some of a burst pass and counts them when it next
# asks: a question costs a tenth of a millisecond, which a curtailment should not wait for. Seconds and share.
ON_ACCOUNT_S = 1.0
ON_ACCOUNT_SHARE = 20

# The generic cell rate algorithm (ITU-T I.371, annex A), in its virtual scheduling form: a bucket is one
# number, the moment until which it is used up if nothing more comes. All buckets are asked first and charged
# only where all have room, so that who is refused by one does not use up another; what passed on account is
# charged whatever the answer. The clock is that of Redis, one for all processes; where it was set back, a
# bucket is full for no longer than its own tolerance. Returns the wait, and how far each bucket is used up.
_ADMIT = """
local now = redis.call('TIME')
now = now[1] * 1000000 + now[2]
local owed, used, wait = {}, {}, 0
for i, key in ipairs(KEYS) do
  local interval, tolerance = tonumber(ARGV[3 * i - 2]), tonumber(ARGV[3 * i - 1])
  local until_us = tonumber(redis.call('GET', key) or now)
  owed[i] = math.min(math.max(until_us, now), now + tolerance) + interval * ARGV[3 * i]
  used[i] = owed[i] + interval
  wait = math.max(wait, used[i] - tolerance - now)
end
local answer = {math.ceil(wait)}
for i, key in ipairs(KEYS) do
  local until_us = wait > 0 and owed[i] or used[i]
  if until_us > now then
    redis.call('SET', key, string.format('%.0f', until_us), 'PX', math.ceil((until_us - now) / 1000))
  end
  answer[i + 1] = math.ceil(until_us - now)
end
return answer
"""


@dataclass(frozen=True, slots=True)
class Bucket:
    """What is counted together, and how much there may be. Its name stands in Redis, and is no secret."""

    name: str
    rate: Rate


class _Breaker:
    """Keeps those who ask from waiting for a Redis that has just been found silent, one by one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._silent_until = 0.0

    def may_ask(self, *, now: float) -> bool:
        if not self._silent_until:
            return True
        with self._lock:
            if now < self._silent_until:
                return False
            # One tries; the others pass meanwhile.
            self._silent_until = now + ASK_AGAIN_S
            return True

    def failed(self, error: live.LiveUnavailable, *, now: float) -> None:
        with self._lock:
            is_news = not self._silent_until
            self._silent_until = now + ASK_AGAIN_S
        if is_news:
            log.warning("throttles_off", error=error.detail)

    def answered(self) -> None:
        if not self._silent_until:
            return
        with self._lock:
            is_news, self._silent_until = bool(self._silent_until), 0.0
        if is_news:
            log.info("throttles_on_again")


class Accounts:
    """What this process let pass without asking, by bucket."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked: dict[str, float] = {}
        self._owed: dict[str, int] = {}

    def take(self, buckets: Sequence[Bucket], *, now: float) -> list[int] | None:
        """None where one more may pass on account; else what each bucket is owed, to be told to Redis now."""
        with self._lock:
            if all(
                now - self._asked.get(bucket.name, -ON_ACCOUNT_S) < ON_ACCOUNT_S
                and self._owed.get(bucket.name, 0) < bucket.rate.burst // ON_ACCOUNT_SHARE
                for bucket in buckets
            ):
                for bucket in buckets:
                    self._owed[bucket.name] = self._owed.get(bucket.name, 0) + 1
                return None
            return [self._owed.pop(bucket.name, 0) for bucket in buckets]

    def asked(self, buckets: Sequence[Bucket], used_us: Sequence[int], *, now: float) -> None:
        """Remember which buckets have room, by the answer of Redis."""
        with self._lock:
            if len(self._asked) >= NAMES_REMEMBERED:
                self._asked.clear()
                self._owed.clear()
            for bucket, used in zip(buckets, used_us, strict=True):
                if used < bucket.rate.interval_us * bucket.rate.burst / 2:
                    self._asked[bucket.name] = now
                else:
                    self._asked.pop(bucket.name, None)

    def forget(self) -> None:
        with self._lock:
            self._asked.clear()
            self._owed.clear()


_breaker = _Breaker()
accounts_here = Accounts()
_told: dict[str, float] = {}


def admit(buckets: Sequence[Bucket], *, now: float, accounts: Accounts = accounts_here) -> float:
    """Count one request against all of these buckets: 0 where it may pass, else the seconds to wait.

    One that is refused is counted nowhere. At most one round trip to Redis, and 0 where that does not answer.
    Each process may let a twentieth of a burst more pass than there is room for. `now`: seconds of a
    monotonic clock, by which a silent Redis is left alone for a while. `accounts`: this process's.
    """
    if not buckets or not _breaker.may_ask(now=now):
        return 0.0
    owed = accounts.take(buckets, now=now)
    if owed is None:
        return 0.0
    args: list[str] = []
    for bucket, count in zip(buckets, owed, strict=True):
        interval_us = bucket.rate.interval_us
        args += (f"{interval_us:.3f}", f"{interval_us * bucket.rate.burst:.3f}", str(count))
    keys = [f"sgm:throttle:{bucket.name}" for bucket in buckets]
    try:
        wait_us, *used_us = live.script_numbers(_ADMIT, keys=keys, args=args)
    except live.LiveUnavailable as error:
        _breaker.failed(error, now=now)
        return 0.0
    _breaker.answered()
    accounts.asked(buckets, used_us, now=now)
    if wait_us > 0:
        _tell(buckets, now=now)
    return wait_us / 1_000_000


def _tell(buckets: Sequence[Bucket], *, now: float) -> None:
    who = ", ".join(bucket.name for bucket in buckets)
    if now - _told.get(who, -TELL_AGAIN_S) < TELL_AGAIN_S:
        return
    if len(_told) >= NAMES_REMEMBERED:
        _told.clear()
    _told[who] = now
    log.warning("throttled", buckets=who, rates=[str(bucket.rate) for bucket in buckets])
