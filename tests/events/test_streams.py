"""What listeners are told, and who may listen: the same at the events' process and through web."""

from __future__ import annotations

import time
import uuid
from dataclasses import replace

import httpx
import pytest
from django.conf import settings as central

from control_app.events import control_logs_publish
from devices_app.services import device_values_confirm
from sites_app.selectors import token_value
from sites_app.services import token_revoke, token_update
from smartgrid.events import Event, Kind, events_flush, events_publish
from tests.events.conftest import as_listed
from tests.events.listening import QUICK, EventsThread, Stream, events_thread
from tests.factories import (
    Story,
    control_log_make,
    node_online,
    site_make,
    story_make,
    token_make,
)
from tests.servers import until

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def story(transactional_db) -> Story:
    return story_make()


@pytest.fixture
def root() -> str:
    return str(central.SGM_ROOT_TOKENS[0])


@pytest.fixture
def of_a(story: Story) -> str:
    return token_value(story.token_a)


@pytest.fixture
def of_b(story: Story) -> str:
    return token_value(story.token_b)


def happens(story: Story, *numbers: int) -> None:
    """Something happens to both nodes, told apart by these numbers."""
    for number in numbers:
        events_publish(
            [
                Event(Kind.NODE, site.pk, {"site": site.site_tag, "n": number})
                for site in (story.site_a, story.site_b)
            ]
        )
    assert events_flush(within_s=5)


def numbers(stream: Stream) -> list[int]:
    return [data["n"] for data in stream.heard("node")]


# --- what is told -------------------------------------------------------------------------------------------


def test_listener_is_told_what_the_lists_show(address, story, root, listen):
    stream = listen(address, root)
    line = control_log_make(site=story.site_a, value=30)
    control_logs_publish([line])
    device_values_confirm(node_id=story.node_a.pk, values={"SMA_STP60_01": 30}, sequence=1)
    node_online(story.node_b)
    stream.hears(3)
    assert stream.heard("control_log") == [as_listed(line)]
    [device] = stream.heard("device")
    assert (device["device_tag"], device["value"]) == ("SMA_STP60_01", 30)
    [node] = stream.heard("node")
    assert (node["polaris_node_name"], node["online"]) == ("node-02", True)
    assert all(event.id for event in stream.events)


def test_stream_is_one_that_proxies_and_browsers_keep_open(address, root, listen):
    stream = listen(address, root)
    assert stream.answer_headers["content-type"].startswith("text/event-stream")
    assert "no-cache" in stream.answer_headers["cache-control"]
    assert stream.answer_headers["x-accel-buffering"] == "no"
    assert stream.answer_headers["x-request-id"]
    until(lambda: len(stream.comments) >= 2, what="no comments keep it open")
    assert stream.retry == "3000"


def test_event_leaves_at_once(address, story, root, listen):
    stream = listen(address, root)
    stream.has_place()
    began = time.monotonic()
    happens(story, 1)
    stream.hears(2, "node")
    assert time.monotonic() - began < 1


def test_token_is_told_of_its_sites_alone(  # noqa: PLR0917 - pytest passes by name
    address, story, root, of_a, of_b, listen
):
    everything, only_a, only_b, nothing = (
        listen(address, token) for token in (root, of_a, of_b, token_value(story.token_nothing))
    )
    happens(story, 1)
    everything.hears(2)
    assert [data["site"] for data in only_a.hears(1)] == ["solarpanel_site_a"]
    assert [data["site"] for data in only_b.hears(1)] == ["solarpanel_site_b"]
    assert nothing.heard() == []


def test_listener_may_choose_kinds_and_a_site(address, story, root, listen):
    stream = listen(address, root, query=f"?types=node,device&site_id={story.site_a.pk}")
    control_logs_publish([control_log_make(site=story.site_a)])
    happens(story, 1)
    device_values_confirm(node_id=story.node_a.pk, values={"SMA_STP60_01": 30}, sequence=1)
    stream.hears(2)
    assert [event.name for event in stream.events if event.name != "mark"] == ["node", "device"]
    assert stream.heard("node") == [{"site": "solarpanel_site_a", "n": 1}]


# --- who may listen -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token", "status", "code"),
    [("", 401, "management_token_missing"), ("tok_" + "0" * 32, 401, "management_token_invalid")],
)
def test_stream_opens_for_good_credentials_alone(  # noqa: PLR0917 - pytest passes by name
    address, story, listen, token, status, code
):
    stream = listen(address, token)
    assert (stream.status, stream.answer["code"]) == (status, code)
    assert stream.answer.keys() == {"detail", "code", "errors", "request_id"}
    assert stream.answer["request_id"] == stream.answer_headers["x-request-id"]
    assert "www-authenticate" in stream.answer_headers


def test_bearer_that_has_expired_opens_nothing(address, issuer, root):
    headers = {
        "Authorization": f"Bearer {issuer.token(exp=int(time.time()) - 100)}",
        "X-Management-Token": root,
    }
    answer = httpx.get(f"{address}/v1/events", headers=headers, trust_env=False)
    assert (answer.status_code, answer.json()["code"]) == (401, "bearer_expired")


def test_foreign_site_looks_like_one_that_is_not_there(address, story, of_a, listen):
    foreign = listen(address, of_a, query=f"?site_id={story.site_b.pk}")
    absent = listen(address, of_a, query=f"?site_id={uuid.uuid4()}")
    assert foreign.status == absent.status == 404
    assert {**foreign.answer, "request_id": ""} == {**absent.answer, "request_id": ""}


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("?types=", "types"),
        ("?types=device,", "types"),
        ("?types=mark", "types"),
        ("?types=gap", "types"),
        ("?types=DEVICE", "types"),
        ("?types=%00", "types"),
        ("?types=%ff%fe", "types"),
        ("?site_id=", "site_id"),
        ("?site_id=1", "site_id"),
        ("?site_id=%00", "site_id"),
    ],
)
def test_filter_that_cannot_be_used_is_named(address, root, listen, query, field):
    stream = listen(address, root, query=query)
    assert stream.status == 400
    assert list(stream.answer["errors"]) == [field]


@pytest.mark.parametrize("method", ["HEAD", "POST", "PUT", "DELETE", "PATCH"])
def test_stream_is_got_and_nothing_else(address, issuer, root, method):
    headers = {"Authorization": f"Bearer {issuer.token()}", "X-Management-Token": root}
    answer = httpx.request(method, f"{address}/v1/events", headers=headers, trust_env=False)
    assert answer.status_code == 405


def test_refusal_is_json_whatever_is_accepted(address, issuer, root):
    for accepted in ("text/event-stream", "application/xml", "garbage"):
        answer = httpx.get(
            f"{address}/v1/events?types=none",
            headers={
                "Authorization": f"Bearer {issuer.token()}",
                "X-Management-Token": root,
                "Accept": accepted,
            },
            trust_env=False,
        )
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid")


# --- coming back --------------------------------------------------------------------------------------------


def test_what_was_missed_comes_first(address, story, of_a, listen):
    stream = listen(address, of_a)
    stream.has_place()
    happens(story, 1, 2)
    stream.hears(2)
    stream.close()
    happens(story, 3, 4)
    again = listen(address, of_a, last_id=stream.last_id)
    again.hears(2)
    happens(story, 5)
    again.hears(3)
    assert numbers(stream) + numbers(again) == [1, 2, 3, 4, 5]
    assert again.heard("reset") == []


def test_place_may_stand_in_the_address_for_browsers(address, story, of_a, listen):
    stream = listen(address, of_a)
    place = stream.has_place()
    stream.close()
    happens(story, 1)
    again = listen(address, of_a, query=f"?last_event_id={place}")
    again.hears(1)
    assert numbers(again) == [1]
    # On its way back a browser has heard more than its address says.
    late = listen(address, of_a, query=f"?last_event_id={place}", last_id=again.last_id)
    happens(story, 2)
    late.hears(1)
    assert numbers(late) == [2]


def test_listener_to_whom_nothing_was_told_has_a_place_all_the_same(address, story, of_a, listen):
    stream = listen(address, of_a)
    place = stream.has_place()
    assert stream.heard() == []
    stream.close()
    happens(story, 1)
    again = listen(address, of_a, last_id=place)
    again.hears(1)
    assert numbers(again) == [1]


@pytest.mark.parametrize(
    "last_id",
    [
        "garbage",
        "0-0",
        "1-1",
        "99999999999999-0",
        "9" * 300,
        "1763890000000",
        "-",
        "+",
        "$",
        "(1-1",
        "1-1, 2-2",
    ],
)
def test_place_that_is_none_is_answered_by_a_reset(address, story, of_a, listen, last_id):
    happens(story, 1)
    stream = listen(address, of_a, last_id=last_id)
    stream.hears(1, "reset")
    happens(story, 2)
    stream.hears(1, "node")
    assert numbers(stream) == [2]


def test_place_of_a_foreign_event_looks_like_one_that_never_was(address, story, of_a, of_b, listen):
    hears_b = listen(address, of_b)
    happens(story, 1)
    hears_b.hears(1)
    foreign = listen(address, of_a, last_id=hears_b.events[-1].id)
    absent = listen(address, of_a, last_id="1-1")
    assert foreign.hears(1, "reset") == absent.hears(1, "reset")
    # A new place takes the bad one's, so that the next time is no reset.
    place = foreign.has_place()
    again = listen(address, of_a, last_id=place)
    happens(story, 2)
    again.hears(1, "node")
    assert again.heard("reset") == []


def test_place_that_was_trimmed_is_answered_by_a_reset(address, story, root, listen):
    stream = listen(address, root)
    place = stream.has_place()
    stream.close()
    for first in range(0, 3000, 500):
        happens(story, *range(first, first + 500))
    again = listen(address, root, last_id=place)
    again.hears(1, "reset")


def test_long_absence_is_made_up_for_in_order(address, story, of_a, listen, settings):
    settings.SGM_EVENTS_KEPT = 10_000
    stream = listen(address, of_a)
    place = stream.has_place()
    stream.close()
    for first in range(0, 1500, 500):
        happens(story, *range(first, first + 500))
    again = listen(address, of_a, last_id=place)
    again.hears(1500, "node")
    assert numbers(again) == list(range(1500))


# --- how it ends --------------------------------------------------------------------------------------------


def test_stream_ends_with_its_bearer(address, issuer, root):
    # Its leeway of a minute is nearly over.
    bearer = issuer.token(exp=int(time.time()) - 57)
    stream = Stream(
        f"{address}/v1/events", {"Authorization": f"Bearer {bearer}", "X-Management-Token": root}
    ).start()
    assert stream.status == 200
    stream.ends()
    assert "the bearer token has expired" in stream.comments
    stream.close()


def test_stream_ends_when_its_token_is_revoked(address, story, of_a, of_b, listen):
    stream, other = listen(address, of_a), listen(address, of_b)
    token_revoke(token=story.token_a)
    stream.ends()
    assert listen(address, of_a).status == 401
    assert not other.ended.is_set()


def test_stream_of_a_site_ends_when_its_token_loses_that(address, story, of_a, listen):
    stream = listen(address, of_a, query=f"?site_id={story.site_a.pk}")
    token_update(token=story.token_a, name="other", sites=[story.site_b])
    stream.ends()
    assert listen(address, of_a, query=f"?site_id={story.site_a.pk}").status == 404


def test_sites_that_a_token_gains_and_loses_are_told_and_not_told(address, story, of_a, listen):
    stream = listen(address, of_a)
    token_update(token=story.token_a, name="other", sites=[story.site_b])

    def hears_of_b() -> bool:
        happens(story, 1)
        return any(data["site"] == "solarpanel_site_b" for data in stream.heard("node"))

    until(hears_of_b, what="the gained site is not told")
    happens(story, 2)
    until(lambda: any(data["n"] == 2 for data in stream.heard("node")), what="nothing is told")
    assert {data["site"] for data in stream.heard("node") if data["n"] == 2} == {"solarpanel_site_b"}


# --- bounds -------------------------------------------------------------------------------------------------


def test_token_has_so_many_streams_and_no_more(  # noqa: PLR0917 - pytest passes by name
    address, story, of_a, of_b, listen, settings
):
    settings.SGM_EVENTS_LISTENERS_PER_TOKEN = 2
    first, _ = listen(address, of_a), listen(address, of_a)
    refused = listen(address, of_a)
    assert (refused.status, refused.answer["code"]) == (429, "throttled")
    assert int(refused.answer_headers["retry-after"]) > 0
    assert listen(address, of_b).status == 200
    first.close()
    until(lambda: listen(address, of_a).status == 200, what="no room is made by one that goes")


def test_server_has_so_many_streams_and_no_more(  # noqa: PLR0917 - pytest passes by name
    address, story, of_a, of_b, listen, settings
):
    settings.SGM_EVENTS_LISTENERS = 1
    first = listen(address, of_a)
    refused = listen(address, of_b)
    assert (refused.status, refused.answer["code"]) == (503, "events_unavailable")
    assert int(refused.answer_headers["retry-after"]) > 0
    first.close()
    until(lambda: listen(address, of_b).status == 200, what="no room is made by one that goes")


def test_listener_that_goes_leaves_nothing_behind(address, served: EventsThread, story, of_a, listen):
    for _ in range(3):
        streams = [listen(address, of_a) for _ in range(5)]
        assert served.listeners == 5
        for stream in streams:
            stream.close()
        until(lambda: served.listeners == 0, what="listeners that went are still held")


# --- the events' process alone ------------------------------------------------------------------------------


@pytest.fixture
def _console_files(settings) -> None:
    """Found, as by any process but the tests' own."""
    settings.WHITENOISE_USE_FINDERS = True


@pytest.mark.usefixtures("_console_files")
def test_process_serves_nothing_else(served: EventsThread, issuer, root):
    headers = {"Authorization": f"Bearer {issuer.token()}", "X-Management-Token": root}
    for path in ("/v1/sites", "/v1/ping", "/v1", "/v1/events/"):
        assert httpx.get(f"{served.url}{path}", headers=headers, trust_env=False).status_code == 404, path
        assert httpx.get(f"{served.url}{path}", trust_env=False).status_code == 401, path
    for path in ("/admin/", "/static/admin/css/base.css", "/", "/oauth/token"):
        assert httpx.get(f"{served.url}{path}", trust_env=False).status_code == 404, path
    assert httpx.get(f"{served.url}/healthz", trust_env=False).json() == {"status": "ok"}


def test_site_that_was_made_later_is_told_to_root(address, root, listen):
    stream = listen(address, root)
    site = site_make()
    token_make(site)
    events_publish([Event(Kind.NODE, site.pk, {"n": 1})])
    stream.hears(1)


def test_process_is_ready_as_soon_as_redis_answers_though_nothing_happens(stream, transactional_db, issuer):
    # Until something happened, or this read came to its end, nobody was let in.
    with events_thread(timing=replace(QUICK, read_s=120.0)) as running:
        assert httpx.get(f"{running.url}/readyz", trust_env=False).json() == {"status": "ok"}
