"""A site's `setpoint_throttle_s`: how often one device is set by requests, whoever sends them (ADR 0026).

What was set, and when, stands in Redis for as long as it matters; without Redis nobody is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from uuid import UUID

import structlog

from control_app.targets import Targets, reason
from edge.wire.messages import Code
from smartgrid import live
from smartgrid.errors import Throttled

log = structlog.stdlib.get_logger(__name__)

TAGS_NAMED = 5

# A mark is the moment, who made it, and the value. All devices of a request are judged in one step, so that
# of two requests at once one finds the other's marks. A device that may be set is marked; for one that may
# not, its wait in milliseconds is returned. The clock is that of Redis; where it was set back, nobody waits
# for longer than the throttle.
_TAKE = """
local now = redis.call('TIME')
now = now[1] * 1000 + math.floor(now[2] / 1000)
local throttle_ms, mark = tonumber(ARGV[1]), ARGV[2]
local waits = {}
for i, key in ipairs(KEYS) do
  local held, wait = redis.call('GET', key), 0
  if held then
    local at, value = string.match(held, '^(%d+) %S+ (%S+)$')
    if math.abs(tonumber(ARGV[2 + i])) >= math.abs(tonumber(value)) then
      wait = math.min(tonumber(at), now) + throttle_ms - now
    end
  end
  if wait > 0 then
    waits[i] = wait
  else
    waits[i] = 0
    redis.call('SET', key, string.format('%.0f %s %s', now, mark, ARGV[2 + i]), 'PX', throttle_ms)
  end
end
return waits
"""

# Only one's own: another request may have set the device since.
_UNDO = """
for _, key in ipairs(KEYS) do
  local held = redis.call('GET', key)
  if held and string.match(held, '^%d+ (%S+) ') == ARGV[1] then
    redis.call('DEL', key)
  end
end
return {}
"""


@contextmanager
def setpoints_throttled(targets: Targets, *, mark: str) -> Iterator[Callable[[Collection[str]], None]]:
    """Leave out of a request the devices that were set too lately, for sites that want this.

    They are added to what is refused; `Throttled` where nothing else is left. What is yielded is to be called
    with the tags that were set in the end: the others may be tried again at once. `mark` is a word of the
    request's own. A value nearer to zero than the one before is never held up: it may be what a grid operator
    needs now.
    """
    throttle_s = _throttle_of(targets)
    if throttle_s is None:
        yield _nothing
        return
    waits = _take(targets, throttle_s=throttle_s, mark=mark)
    taken = [tag for tag in targets.values if tag not in waits]
    if not taken:
        raise Throttled(
            f"{', '.join(sorted(waits)[:TAGS_NAMED])}: {_text(max(waits.values()), throttle_s)}",
            code=Code.SETPOINT_THROTTLED,
            retry_after_s=max(waits.values()),
        )
    for tag, wait_s in waits.items():
        targets.refused[tag] = reason(Code.SETPOINT_THROTTLED, _text(wait_s, throttle_s))
        del targets.values[tag]
    for node_id, devices in list(targets.by_node.items()):
        targets.by_node[node_id] = [device for device in devices if device.tag not in waits]
        if not targets.by_node[node_id]:
            del targets.by_node[node_id]
    confirmed: set[str] = set()
    try:
        yield confirmed.update
    finally:
        _undo(targets.site_id, [tag for tag in taken if tag not in confirmed], mark=mark)


def setpoints_forget(targets: Targets, *, released: Collection[str]) -> None:
    """Forget what these devices were set to: they are released, and may be set again at once."""
    if _throttle_of(targets) is None or not released:
        return
    try:
        live.keys_remove(_keys(targets.site_id, released))
    except live.LiveUnavailable as error:
        log.warning("setpoint_marks_left", error=error.detail)


def _nothing(_tags: Collection[str]) -> None:
    """Where nothing is throttled, nothing is remembered."""


def _throttle_of(targets: Targets) -> int | None:
    """The site's; None where there is none, or nothing to command."""
    devices = next(iter(targets.by_node.values()), None)
    return devices[0].throttle_s if devices else None


def _take(targets: Targets, *, throttle_s: int, mark: str) -> dict[str, float]:
    """Mark all devices that may be set now; the seconds that the others have to wait, by tag."""
    tags = list(targets.values)
    values = [repr(float(value)) for value in targets.values.values() if value is not None]
    try:
        waits_ms = live.script_numbers(
            _TAKE, keys=_keys(targets.site_id, tags), args=[str(throttle_s * 1000), mark, *values]
        )
    except live.LiveUnavailable as error:
        log.warning("setpoint_throttle_off", error=error.detail)
        return {}
    return {tag: wait_ms / 1000 for tag, wait_ms in zip(tags, waits_ms, strict=True) if wait_ms > 0}


def _undo(site_id: UUID, tags: Collection[str], *, mark: str) -> None:
    if not tags:
        return
    try:
        live.script_run(_UNDO, keys=_keys(site_id, tags), args=[mark])
    except live.LiveUnavailable as error:
        log.warning("setpoint_marks_left", error=error.detail)


def _text(wait_s: float, throttle_s: int) -> str:
    return f"set less than {throttle_s} s ago; again in {math.ceil(wait_s)} s, nearer to zero at once"


def _keys(site_id: UUID, tags: Collection[str]) -> list[str]:
    return [f"sgm:setpoint:{site_id}:{tag}" for tag in tags]
