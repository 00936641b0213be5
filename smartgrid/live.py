"""Redis: what is newest about sites and nodes. The only module which imports the redis library.

Everything here may be lost at any time and comes back by itself; what must last is in the database.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import cast

import msgspec
import redis
from django.conf import settings
from redis.backoff import NoBackoff
from redis.retry import Retry

from smartgrid.errors import Unavailable

CONNECT_TIMEOUT_S = 0.5
ANSWER_TIMEOUT_S = 1.0
LONGEST_WAIT_S = 12.0
_KNOWN_SINCE = "sgm:known_since"


class LiveUnavailable(Unavailable):
    """Redis does not answer."""

    code = "live_unavailable"


@cache
def client() -> redis.Redis:
    """This process's connections to Redis; threads share them.

    A command which outlasts a second raises: callers who block on a list set their own timeout.
    """
    return redis.Redis.from_url(
        settings.SGM_REDIS_URL,
        decode_responses=True,
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        socket_timeout=ANSWER_TIMEOUT_S,
        socket_keepalive=True,
        # One more try at once, for a connection which died while it lay in the pool.
        retry=Retry(NoBackoff(), 1),
        retry_on_error=[redis.ConnectionError],
    )


def hash_read(key: str) -> dict[str, str]:
    """All fields of a hash, empty where there is none; `LiveUnavailable` where Redis does not answer."""
    try:
        return cast("dict[str, str]", client().hgetall(key))
    except redis.RedisError as error:
        raise LiveUnavailable(f"Redis does not answer: {error}") from error


def ping() -> None:
    """Raise `LiveUnavailable` unless Redis answers."""
    try:
        client().ping()
    except redis.RedisError as error:
        raise LiveUnavailable(f"Redis does not answer: {error}") from error


# As one text: taking 10,000 hashes apart reply by reply keeps a process busy for a second.
_FIELDS_OF_MANY = """
local rows = {}
for i, key in ipairs(KEYS) do
  local row = redis.call('HMGET', key, unpack(ARGV))
  for j = 1, #ARGV do
    row[j] = row[j] or ''
  end
  rows[i] = row
end
return {cjson.encode(rows)}
"""
# A script keeps all others waiting: for a millisecond or two.
HASHES_AT_ONCE = 1000


def hashes_fields(keys: Sequence[str], *, fields: Sequence[str]) -> list[list[str]]:
    """These fields of several hashes, in the order asked for; empty where there is none."""
    rows: list[list[str]] = []
    for start in range(0, len(keys), HASHES_AT_ONCE):
        (text,) = script_run(_FIELDS_OF_MANY, keys=keys[start : start + HASHES_AT_ONCE], args=fields)
        rows += msgspec.json.decode(text, type=list[list[str]])
    return rows


def hash_write(key: str, fields: dict[str, str], *, expires_s: int) -> None:
    """Set these fields, leaving others; the hash is gone after `expires_s` without another write."""
    try:
        pipe = client().pipeline(transaction=False)
        pipe.hset(key, items=[part for item in fields.items() for part in item])
        pipe.expire(key, expires_s)
        pipe.execute()
    except redis.RedisError as error:
        raise LiveUnavailable(f"Redis does not answer: {error}") from error


def script_run(script: str, *, keys: Sequence[str], args: Sequence[str]) -> list[str]:
    """Run a Lua script on these keys, in one round trip and as one step; the list it returns."""
    try:
        registered = client().register_script(script)
        return cast("list[str]", registered(keys=keys, args=args))
    except redis.RedisError as error:
        raise LiveUnavailable(f"Redis does not answer: {error}") from error


# A field keeps the stamp it was written with in front of its value; stamps of one length compare as text.
_NEWEST = """
for i = 2, #ARGV, 3 do
  local held = redis.call('HGET', KEYS[1], ARGV[i])
  if not held or string.sub(held, 1, #ARGV[i + 1]) < ARGV[i + 1] then
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1] .. ' ' .. ARGV[i + 2])
  end
end
redis.call('EXPIRE', KEYS[1], ARGV[1])
"""


def hashes_newest_write(hashes: Mapping[str, Mapping[str, tuple[str, str]]], *, expires_s: int) -> None:
    """Set fields of several hashes, each to a stamp and a value, except where a stamp as late is there.

    Stamps are texts of one length whose order is that of time. Of two writers at once the newer wins.
    """
    try:
        pipe = client().pipeline(transaction=False)
        for key, fields in hashes.items():
            arguments = [part for name, (stamp, value) in fields.items() for part in (name, stamp, value)]
            pipe.eval(_NEWEST, 1, key, str(expires_s), *arguments)
        pipe.execute()
    except redis.RedisError as error:
        raise LiveUnavailable(f"Redis does not answer: {error}") from error


def hashes_write(hashes: Mapping[str, Mapping[str, str]], *, expires_s: int) -> None:
    """`hash_write` of several hashes in one round trip."""
    try:
        pipe = client().pipeline(transaction=False)
        for key, fields in hashes.items():
            pipe.hset(key, items=[part for item in fields.items() for part in item])
            pipe.expire(key, expires_s)
        pipe.execute()
    except redis.RedisError as error:
        raise LiveUnavailable(f"Redis does not answer: {error}") from error


def hash_newest_read(key: str) -> dict[str, tuple[str, str]]:
    """Field -> stamp and value, of a hash that `hashes_newest_write` wrote."""
    parts = {name: text.partition(" ") for name, text in hash_read(key).items()}
    return {name: (stamp, value) for name, (stamp, _, value) in parts.items()}


def known_since(*, at: float) -> float:
    """Since when this Redis has been known to hold what we wrote: `at`, where it came up empty since.

    In seconds of central's clock. A moment still to come, because the clock was set back, is `at` too.
    """
    try:
        kept = cast("str | None", client().set(_KNOWN_SINCE, f"{at:.3f}", nx=True, get=True))
        since = at if kept is None else float(kept)
        if since > at:
            client().set(_KNOWN_SINCE, f"{at:.3f}")
    except redis.RedisError as error:
        raise LiveUnavailable(f"Redis does not answer: {error}") from error
    return min(since, at)


def text_write(key: str, text: str, *, expires_s: int) -> None:
    """Keep a text for a while."""
    try:
        client().set(key, text, ex=expires_s)
    except redis.RedisError as error:
        raise LiveUnavailable(f"Redis does not answer: {error}") from error


def text_read(key: str) -> str | None:
    """A text that was kept; None where there is none any longer."""
    try:
        return cast("str | None", client().get(key))
    except redis.RedisError as error:
        raise LiveUnavailable(f"Redis does not answer: {error}") from error


def key_remove(key: str) -> None:
    """Forget what is kept under this key."""
    try:
        client().delete(key)
    except redis.RedisError as error:
        raise LiveUnavailable(f"Redis does not answer: {error}") from error


def list_push(key: str, value: str, *, expires_s: int) -> None:
    """Add to the end of a list that somebody may be waiting on."""
    try:
        pipe = client().pipeline(transaction=False)
        pipe.rpush(key, value)
        pipe.expire(key, expires_s)
        pipe.execute()
    except redis.RedisError as error:
        raise LiveUnavailable(f"Redis does not answer: {error}") from error


def list_read(key: str) -> list[str]:
    """All of a list, as it is now."""
    try:
        return cast("list[str]", client().lrange(key, 0, -1))
    except redis.RedisError as error:
        raise LiveUnavailable(f"Redis does not answer: {error}") from error


def flags_set(keys: Sequence[str], *, expires_s: int) -> list[bool]:
    """Set these flags; which of them were not set before. Each is gone after `expires_s`."""
    try:
        pipe = client().pipeline(transaction=False)
        for key in keys:
            pipe.set(key, "1", nx=True, ex=expires_s)
        return [bool(answer) for answer in pipe.execute()]
    except redis.RedisError as error:
        raise LiveUnavailable(f"Redis does not answer: {error}") from error


def flags_clear(keys: Sequence[str], *, mark: Mapping[str, int]) -> None:
    """Take these flags away; set each of `mark` for so many milliseconds."""
    try:
        pipe = client().pipeline(transaction=False)
        pipe.delete(*keys)
        for key, expires_ms in mark.items():
            pipe.set(key, "1", px=expires_ms)
        pipe.execute()
    except redis.RedisError as error:
        raise LiveUnavailable(f"Redis does not answer: {error}") from error


def flags_read(keys: Sequence[str]) -> list[bool]:
    """Tell which of these flags are set."""
    try:
        return [found is not None for found in cast("list[str | None]", client().mget(keys))]
    except redis.RedisError as error:
        raise LiveUnavailable(f"Redis does not answer: {error}") from error


@cache
def _waiting_client() -> redis.Redis:
    """Connections for those who block: the server ends the wait, and the socket only where that hangs."""
    return redis.Redis.from_url(
        settings.SGM_REDIS_URL,
        decode_responses=True,
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        socket_timeout=LONGEST_WAIT_S + ANSWER_TIMEOUT_S,
        socket_keepalive=True,
        retry=Retry(NoBackoff(), 0),
    )


def list_wait(key: str, *, timeout_s: float) -> str | None:
    """Take the first of a list, waiting for one at most `timeout_s` (up to 12); None where none came."""
    try:
        found = _waiting_client().blpop([key], timeout=max(0.01, timeout_s))
    except redis.RedisError as error:
        raise LiveUnavailable(f"Redis does not answer: {error}") from error
    return None if found is None else cast("tuple[str, str]", found)[1]
