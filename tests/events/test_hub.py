"""Who is told what, in memory: by site, by kind, once, and never more than fits."""

from __future__ import annotations

import uuid

import pytest

from smartgrid.event_streams.hub import (
    BYTES_MAX,
    FRAMES_MAX,
    PLACE_OLD_MS,
    Hub,
    Listener,
    Notice,
    Terms,
    frame,
    place_read,
    place_text,
)

KINDS = frozenset({"control_log", "device", "node"})


def listener_make(
    hub: Hub | None = None,
    *,
    sites: frozenset[str] | None = None,
    kinds: frozenset[str] = KINDS,
    owner: str = "somebody",
    **callbacks,
) -> Listener:
    terms = Terms(
        owner=owner,
        token_id=uuid.uuid4(),
        kinds=kinds,
        site_id=None,
        sites=sites,
        expires_at=1e12,
        last_event_id="",
    )
    listener = Listener(terms, **callbacks)
    if hub is not None:
        hub.join(listener)
    return listener


def notice_make(number: int, *, site: str = "a", kind: str = "device", ms: int = 1000) -> Notice:
    return Notice((ms, number), kind, site, frame(event=kind, data=b"%d" % number, place=(ms, number)))


def told(listener: Listener) -> bytes:
    everything = b""
    while piece := listener.take():
        everything += piece
    return everything


async def test_event_reaches_those_who_may_see_its_site_and_nobody_else():
    hub = Hub()
    of_a, of_b, of_both, of_none, of_all = (
        listener_make(hub, sites=sites)
        for sites in (frozenset("a"), frozenset("b"), frozenset("ab"), frozenset(), None)
    )
    hub.publish(notice_make(1, site="a"))
    assert [bool(told(one)) for one in (of_a, of_b, of_both, of_none, of_all)] == [
        True,
        False,
        True,
        False,
        True,
    ]


async def test_listener_hears_only_the_kinds_it_asked_for():
    hub = Hub()
    listener = listener_make(hub, kinds=frozenset({"node"}))
    hub.publish(notice_make(1, kind="device"))
    hub.publish(notice_make(2, kind="node"))
    assert told(listener) == b"id: 1000-2\nevent: node\ndata: 2\n\n"


async def test_event_that_a_listener_has_is_not_told_again():
    hub = Hub()
    listener = listener_make(hub)
    listener.place = (1000, 2)
    for number in (1, 2, 3, 3):
        hub.publish(notice_make(number))
    assert told(listener) == notice_make(3).frame


async def test_site_that_a_token_gains_is_told_and_one_that_it_loses_is_not():
    hub = Hub()
    listener = listener_make(hub, sites=frozenset("a"))
    hub.rescope(listener, frozenset("b"))
    hub.publish(notice_make(1, site="a"))
    hub.publish(notice_make(2, site="b"))
    assert told(listener) == notice_make(2, site="b").frame


async def test_listener_that_does_not_read_is_let_go_and_its_buffer_with_it():
    hub, aborted = Hub(), []
    slow = listener_make(hub, on_slow=lambda: aborted.append(True))
    other = listener_make(hub)
    for number in range(FRAMES_MAX + 1):
        hub.publish(notice_make(number + 1))
        told(other)
    assert slow.ended == "too slow"
    assert aborted == [True]
    assert slow.take() == b""
    assert not other.ended


async def test_few_large_events_fill_a_buffer_too():
    hub = Hub()
    slow = listener_make(hub)
    large = b"1" * (BYTES_MAX // 4)
    for number in range(5):
        hub.publish(Notice((1, number + 1), "device", "a", large))
    assert slow.ended == "too slow"


async def test_listener_that_left_costs_nothing():
    hub = Hub()
    listeners = [
        listener_make(hub, sites=frozenset({str(number)}), owner=str(number)) for number in range(50)
    ]
    listeners += [listener_make(hub, sites=None) for _ in range(50)]
    assert len(hub) == 100
    for listener in listeners:
        hub.leave(listener)
        hub.leave(listener)
    assert len(hub) == 0
    assert not hub._by_site
    assert not hub._of_all
    assert not hub._by_owner


def place_of(listener):
    """Where a listener would go on, looked up anew."""
    return listener.told


async def test_streams_are_counted_by_who_opened_them():
    hub = Hub()
    one, _, _ = (listener_make(hub, owner=owner) for owner in ("x", "x", "y"))
    assert (hub.count_of("x"), hub.count_of("y"), hub.count_of("z")) == (2, 1, 0)
    hub.leave(one)
    assert hub.count_of("x") == 1


async def test_loss_is_told_to_all_and_the_places_before_it_are_good_for_nothing():
    hub = Hub()
    listener = listener_make(hub, sites=frozenset())
    listener.start_at(notice_make(0, kind="mark", site="", ms=2000))
    hub.lose("events were lost", place=(5, 0))
    assert told(listener).startswith(b"event: reset\ndata: {")
    assert place_of(listener) is None
    # Ids begin anew behind a Redis whose clock was set back.
    other = listener_make(hub)
    hub.publish(notice_make(1, ms=6))
    assert told(other)


async def test_mark_is_told_to_whom_nothing_was_told_for_long():
    hub = Hub()
    quiet, busy, new = listener_make(hub), listener_make(hub), listener_make(hub)
    quiet.told, busy.told = (1000, 0), (900 + PLACE_OLD_MS, 0)
    hub.mark(notice_make(1, kind="mark", site="", ms=1000 + PLACE_OLD_MS))
    assert [bool(told(one)) for one in (quiet, busy, new)] == [True, False, True]


async def test_what_waits_is_given_in_order_and_in_pieces():
    listener = listener_make()
    pieces = [b"%05d" % number + b"x" * 2000 for number in range(100)]
    for piece in pieces:
        listener.put(piece)
    given = []
    while piece := listener.take():
        given.append(piece)
    assert b"".join(given) == b"".join(pieces)
    assert len(given) > 1
    assert not listener.woken.is_set()
    listener.put(b"more")
    assert listener.woken.is_set()


async def test_listener_that_ends_is_still_sent_what_waits():
    listener = listener_make()
    listener.put(b"last words")
    listener.end("first reason")
    listener.end("second reason")
    listener.put(b"too late")
    assert told(listener) == b"last words"
    assert listener.ended == "first reason"
    assert listener.woken.is_set()


@pytest.mark.parametrize(
    "text",
    ["", "1", "1-", "-1", "a-b", "1-2-3", " 1-2", "1-2\n", "٣-٤", "9" * 40 + "-1", "$", "*", "+", "(1-1"],
)
def test_what_is_no_id_is_no_place(text):
    assert place_read(text) is None


def test_id_is_read_as_it_was_written():
    assert place_text(place_read("1763890000000-12") or (0, 0)) == "1763890000000-12"
