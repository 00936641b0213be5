"""Redis: what is newest about sites and nodes. The only module which imports the redis library.

Everything here may be lost at any time and comes back by itself; what must last is in the database.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import msgspec
import redis
import redis.asyncio
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


def script_numbers(script: str, *, keys: Sequence[str], args: Sequence[str]) -> list[int]:
    """`script_run` of a script that returns whole numbers."""
    return cast("list[int]", script_run(script, keys=keys, args=args))


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


def hashes_newest_fields(fields: Mapping[str, Sequence[str]]) -> dict[str, list[tuple[str, str] | None]]:
    """Hash -> these of its fields as stamp and value, in their order; None where there is none.

    One round trip for all of them: of many hashes as `hashes_newest_write` wrote, only what is asked for.
    """
    asked = {key: names for key, names in fields.items() if names}
    if not asked:
        return {}
    try:
        pipe = client().pipeline(transaction=False)
        for key, names in asked.items():
            pipe.hmget(key, list(names))
        stored = cast("list[list[str | None]]", pipe.execute())
    except redis.RedisError as error:
        raise LiveUnavailable(f"Redis does not answer: {error}") from error
    return {key: [_stamped(text) for text in row] for key, row in zip(asked, stored, strict=True)}


def _stamped(text: str | None) -> tuple[str, str] | None:
    if text is None:
        return None
    stamp, _, value = text.partition(" ")
    return stamp, value


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


def set_read(key: str) -> set[str]:
    """All members of a set; empty where there is none."""
    try:
        return cast("set[str]", client().smembers(key))
    except redis.RedisError as error:
        raise LiveUnavailable(f"Redis does not answer: {error}") from error


def set_write(key: str, *, add: Sequence[str], remove: Sequence[str]) -> None:
    """Add members to a set and take others out of it, in one step."""
    try:
        pipe = client().pipeline(transaction=True)
        if add:
            pipe.sadd(key, *add)
        if remove:
            pipe.srem(key, *remove)
        pipe.execute()
    except redis.RedisError as error:
        raise LiveUnavailable(f"Redis does not answer: {error}") from error


def key_remove(key: str) -> None:
    """Forget what is kept under this key."""
    try:
        client().delete(key)
    except redis.RedisError as error:
        raise LiveUnavailable(f"Redis does not answer: {error}") from error


def keys_remove(keys: Sequence[str]) -> None:
    """`key_remove` of several, of which there is at least one, in one round trip."""
    try:
        client().delete(*keys)
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


# --- streams ------------------------------------------------------------------------------------------------


def stream_append(key: str, entries: Sequence[Mapping[str, str | bytes]], *, kept: int) -> None:
    """Add these entries to the end of a stream, in this order and in one round trip.

    About the newest `kept` stay. `LiveUnavailable` where Redis does not answer: then none, some or all of
    them may be there.
    """
    try:
        pipe = client().pipeline(transaction=False)
        for entry in entries:
            pipe.xadd(key, cast("Any", entry), maxlen=kept, approximate=True)
        pipe.execute()
    except redis.RedisError as error:
        raise LiveUnavailable(f"Redis does not answer: {error}") from error


@dataclass(frozen=True, slots=True)
class StreamEntry:
    """An entry of a stream: its id, and its fields as bytes."""

    id: str
    fields: Mapping[bytes, bytes]


class StreamReader:
    """One stream for a program on an event loop. Whatever goes wrong with Redis is a `LiveUnavailable`."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._client = redis.asyncio.Redis.from_url(
            settings.SGM_REDIS_URL,
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            socket_timeout=LONGEST_WAIT_S + ANSWER_TIMEOUT_S,
            socket_keepalive=True,
            # As with the others: a connection may have died while it lay in the pool.
            retry=redis.asyncio.retry.Retry(NoBackoff(), 1),
            retry_on_error=[redis.ConnectionError],
        )

    async def aclose(self) -> None:
        await self._client.aclose()

    async def after(self, place: str, *, count: int, wait_s: float) -> list[StreamEntry]:
        """Entries behind this id, at most `count`; where there are none, those that come within `wait_s`."""
        async with _answering(wait_s + ANSWER_TIMEOUT_S):
            found = await self._client.xread(
                {self._key: place}, count=count, block=max(1, int(wait_s * 1000))
            )
        return _entries(next(iter(_streams(found)), []))

    async def between(self, after: str, until: str, *, count: int) -> list[StreamEntry]:
        """Entries behind `after` up to and with `until`, the oldest first, at most `count`."""
        async with _answering(ANSWER_TIMEOUT_S):
            found = await self._client.xrange(self._key, min=f"({after}", max=until, count=count)
        return _entries(found)

    async def entry(self, place: str) -> StreamEntry | None:
        """The entry of exactly this id; None where there is none, or none any longer."""
        async with _answering(ANSWER_TIMEOUT_S):
            found = await self._client.xrange(self._key, min=place, max=place, count=1)
        return next(iter(_entries(found)), None)

    async def newest(self) -> StreamEntry | None:
        """The last entry; None where the stream is empty."""
        async with _answering(ANSWER_TIMEOUT_S):
            found = await self._client.xrevrange(self._key, count=1)
        return next(iter(_entries(found)), None)

    async def append(self, fields: Mapping[str, str | bytes], *, kept: int) -> str:
        """Add an entry; its id."""
        async with _answering(ANSWER_TIMEOUT_S):
            place = await self._client.xadd(self._key, cast("Any", fields), maxlen=kept, approximate=True)
        return cast("bytes", place).decode()


@asynccontextmanager
async def _answering(within_s: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(within_s):
            yield
    except (redis.RedisError, OSError, TimeoutError) as error:
        raise LiveUnavailable(f"Redis does not answer: {error}") from error


def _streams(found: Any) -> list[Any]:
    """What XREAD found of each stream, by protocol 3 or 2; nothing where time was up."""
    if isinstance(found, Mapping):
        # Protocol 3 puts the entries of a stream into a list of lists.
        return [[entry for part in entries for entry in part] for entries in found.values()]
    return [entries for _, entries in found or []]


def _entries(found: Any) -> list[StreamEntry]:
    return [StreamEntry(place.decode(), fields or {}) for place, fields in found]
