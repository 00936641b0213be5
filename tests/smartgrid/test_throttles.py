"""Who asks too often is told so and when to come again; control and the rest do not get in each other's way."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.test import Client
from pytest_django import Settings
from rest_framework.test import APIClient
from structlog.testing import capture_logs

from smartgrid import live, throttles
from smartgrid.rates import Rate, rate_parse
from smartgrid.throttles import Bucket, admit
from tests.factories import ROOT, Story, client_of, principal_of_token, site_make, story_make, token_make
from tests.servers import until
from tests.smartgrid.test_issuer import (  # noqa: F401 - fixtures among them
    first_key,
    guide_body,
    key_file,
    post_json,
)

TEN_AN_HOUR = Rate(count=10, period_s=3600)
AN_INTERVAL_S = 360


def forget() -> None:
    if live.client.cache_info().currsize:
        live.client().close()
    live.client.cache_clear()
    throttles._breaker.answered()
    throttles.accounts_here.forget()
    throttles._told.clear()


@pytest.fixture
def counting(settings: Settings, redis_url: str) -> Iterator[None]:
    """An empty Redis to count in; no limit until a test sets one."""
    settings.SGM_REDIS_URL = redis_url
    forget()
    yield
    forget()


@pytest.fixture
def away(settings: Settings) -> Iterator[None]:
    """A Redis that does not answer."""
    settings.SGM_REDIS_URL = "redis://127.0.0.1:1/0"
    forget()
    yield
    forget()


def ask(buckets: list[Bucket]) -> float:
    return admit(buckets, now=time.monotonic())


def is_an_interval(wait_s: float, *, since_s: float) -> bool:
    """Whether somebody waits for the first place of a burst of `TEN_AN_HOUR` that began at `since_s`.

    Of which a part has passed since, by a loaded machine's clock more than a second.
    """
    return AN_INTERVAL_S - (time.monotonic() - since_s) <= wait_s <= AN_INTERVAL_S


def statuses(client: APIClient, path: str, times: int) -> list[int]:
    return [client.get(path).status_code for _ in range(times)]


def curtail(story: Story, client: APIClient) -> int:
    """Of a category that nothing is of: what matters is whether it gets as far as that."""
    path = f"/v1/sites/{story.site_a.pk}/curtail-category"
    return client.put(path, {"value": 50, "category": "genset"}).status_code


# --- rates ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "rate", "burst"),
    [
        ("12000/min", Rate(12_000, 60), 1200),
        ("600/min", Rate(600, 60), 60),
        ("20/s", Rate(20, 1), 10),
        ("5/h", Rate(5, 3600), 5),
    ],
)
def test_a_tenth_of_a_rate_may_come_at_once(text: str, rate: Rate, burst: int) -> None:
    assert rate_parse(text) == rate
    assert rate.burst == burst


def test_rate_of_zero_is_no_limit() -> None:
    assert rate_parse("0") is None


@pytest.mark.parametrize("text", ["", "600", "600/day", "0/min", "-1/min", "1.5/s", "600 /min", "6e2/min"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a rate"):
        rate_parse(text)


# --- buckets --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("counting")
def test_full_bucket_says_when_there_is_room_again() -> None:
    bucket = Bucket("test", TEN_AN_HOUR)
    since_s = time.monotonic()
    assert [ask([bucket]) for _ in range(10)] == [0.0] * 10
    assert is_an_interval(ask([bucket]), since_s=since_s)


@pytest.mark.usefixtures("counting")
def test_room_comes_back_evenly() -> None:
    bucket = Bucket("test", Rate(count=2, period_s=1))
    while ask([bucket]) == 0.0:
        pass
    until(lambda: ask([bucket]) == 0.0, what="room after half a second", within_s=3)
    assert ask([bucket]) > 0


@pytest.mark.usefixtures("counting")
def test_no_more_than_the_rate_and_one_burst_pass() -> None:
    rate = Rate(count=200, period_s=1)
    bucket, passed = Bucket("test", rate), 0
    began = time.monotonic()
    while time.monotonic() - began < 0.5:
        passed += ask([bucket]) == 0.0
    took_s = time.monotonic() - began
    assert passed <= rate.burst + rate.count * took_s + 1
    assert passed >= rate.burst


@pytest.mark.usefixtures("counting")
def test_what_passed_without_asking_is_counted_in_the_end() -> None:
    # One of them every hundred seconds: nothing comes back meanwhile.
    rate = Rate(count=1000, period_s=100_000)
    bucket, passed = Bucket("test", rate), 0
    while ask([bucket]) == 0.0:
        passed += 1
    assert passed == rate.burst


@pytest.mark.usefixtures("counting")
def test_processes_together_let_no_more_pass_than_they_may_on_account() -> None:
    rate = Rate(count=1000, period_s=100_000)
    bucket, passed = Bucket("test", rate), 0
    processes = [throttles.Accounts() for _ in range(4)]
    refused: set[int] = set()
    while len(refused) < len(processes):
        for number, accounts in enumerate(processes):
            if admit([bucket], now=time.monotonic(), accounts=accounts) == 0.0:
                passed += 1
            else:
                refused.add(number)
    assert rate.burst <= passed <= rate.burst * (1 + len(processes) / throttles.ON_ACCOUNT_SHARE)


@pytest.mark.usefixtures("counting")
def test_client_with_room_asks_redis_once_in_a_while() -> None:
    bucket = Bucket("test", Rate(count=12_000, period_s=60))
    before = live.client().info("commandstats").get("cmdstat_evalsha", {}).get("calls", 0)
    assert [admit([bucket], now=1.0 + number / 100) for number in range(60)] == [0.0] * 60
    after = live.client().info("commandstats")["cmdstat_evalsha"]["calls"]
    assert after - before <= 3


@pytest.mark.usefixtures("counting")
def test_of_many_at_once_as_many_pass_as_there_is_room_for() -> None:
    bucket = Bucket("test", TEN_AN_HOUR)
    with ThreadPoolExecutor(16) as pool:
        waits = list(pool.map(lambda _: ask([bucket]), range(80)))
    assert waits.count(0.0) == 10


@pytest.mark.usefixtures("counting")
def test_what_one_bucket_refuses_is_not_counted_in_the_other() -> None:
    full, other = Bucket("full", Rate(1, 3600)), Bucket("other", TEN_AN_HOUR)
    assert ask([full]) == 0.0
    assert all(ask([full, other]) > 0 for _ in range(20))
    assert [ask([other]) for _ in range(10)] == [0.0] * 10


@pytest.mark.usefixtures("counting")
def test_clock_that_was_ahead_blocks_nobody_for_longer_than_one_interval() -> None:
    bucket = Bucket("test", TEN_AN_HOUR)
    a_year_ahead_us = (time.time() + 365 * 86400) * 1_000_000
    live.text_write("sgm:throttle:test", f"{a_year_ahead_us:.0f}", expires_s=60)
    assert ask([bucket]) <= 360


@pytest.mark.usefixtures("away")
def test_without_redis_all_pass_and_it_is_said_once() -> None:
    with capture_logs() as logs:
        waits = [admit([Bucket("test", Rate(1, 3600))], now=float(second)) for second in range(1, 50)]
    assert waits == [0.0] * 49
    assert [line["event"] for line in logs] == ["throttles_off"]


def test_counting_goes_on_when_redis_is_back(settings: Settings, redis_url: str, away: None) -> None:
    bucket = Bucket("test", Rate(1, 3600))
    assert admit([bucket], now=100.0) == 0.0
    settings.SGM_REDIS_URL = redis_url
    live.client.cache_clear()
    with capture_logs() as logs:
        # Not asked yet: each who asks a silent Redis waits for it.
        assert [admit([bucket], now=100.1 + throttles.ASK_AGAIN_S * part) for part in (0, 0.9)] == [0.0, 0.0]
        assert admit([bucket], now=100.1 + throttles.ASK_AGAIN_S) == 0.0
        assert admit([bucket], now=100.2 + throttles.ASK_AGAIN_S) > 0
    assert [line["event"] for line in logs] == ["throttles_on_again", "throttled"]


# --- the API --------------------------------------------------------------------------------------------------


@pytest.fixture
def story(db: None, counting: None) -> Story:
    return story_make()


def test_client_that_asks_too_often_is_told_when_to_come_again(story: Story, settings: Settings) -> None:
    settings.SGM_THROTTLE_CLIENT = TEN_AN_HOUR
    since_s = time.monotonic()
    assert statuses(story.holder_a, "/v1/ping", 10) == [200] * 10
    response = story.holder_a.get("/v1/ping")
    assert response.status_code == 429
    assert is_an_interval(int(response["Retry-After"]), since_s=since_s)
    assert list(response.json()) == ["detail", "code", "errors", "request_id"]
    assert response.json()["code"] == "throttled"


def test_root_token_is_throttled_like_any_other(story: Story, settings: Settings) -> None:
    settings.SGM_THROTTLE_TOKEN = TEN_AN_HOUR
    assert statuses(story.root, "/v1/ping", 11) == [200] * 10 + [429]


def test_token_has_its_limit_by_whichever_clients(story: Story, settings: Settings) -> None:
    settings.SGM_THROTTLE_TOKEN = TEN_AN_HOUR
    principal = principal_of_token(story.token_a)
    others = type(principal)(client_id="another", token_id=principal.token_id, is_root=False)
    assert statuses(client_of(principal), "/v1/ping", 10) == [200] * 10
    assert statuses(client_of(others), "/v1/ping", 1) == [429]
    assert statuses(story.holder_b, "/v1/ping", 1) == [200]


def test_client_has_its_limit_by_whichever_tokens(story: Story, settings: Settings) -> None:
    settings.SGM_THROTTLE_CLIENT = TEN_AN_HOUR
    assert statuses(story.holder_a, "/v1/ping", 10) == [200] * 10
    assert statuses(story.holder_b, "/v1/ping", 1) == [429]
    another = type(ROOT)(client_id="another", token_id=None, is_root=True)
    assert statuses(client_of(another), "/v1/ping", 1) == [200]


def test_throttled_poller_still_curtails(story: Story, settings: Settings) -> None:
    settings.SGM_THROTTLE_CLIENT = settings.SGM_THROTTLE_TOKEN = TEN_AN_HOUR
    assert statuses(story.holder_a, "/v1/sites", 11)[-1] == 429
    assert curtail(story, story.holder_a) == 404


def test_throttled_curtailment_leaves_the_rest_readable(story: Story, settings: Settings) -> None:
    settings.SGM_THROTTLE_CLIENT = settings.SGM_THROTTLE_TOKEN = TEN_AN_HOUR
    assert [curtail(story, story.holder_a) for _ in range(11)] == [404] * 10 + [429]
    assert story.holder_a.get("/v1/sites").status_code == 200


def test_refused_credentials_use_up_nobodys_requests(story: Story, settings: Settings) -> None:
    settings.SGM_THROTTLE_CLIENT = settings.SGM_THROTTLE_TOKEN = TEN_AN_HOUR
    assert statuses(APIClient(), "/v1/ping", 50) == [401] * 50
    assert story.holder_a.get("/v1/ping").status_code == 200


def test_no_secret_stands_in_redis(settings: Settings, db: None, counting: None) -> None:
    settings.SGM_THROTTLE_CLIENT = settings.SGM_THROTTLE_TOKEN = TEN_AN_HOUR
    token = token_make(site_make())
    client_of(principal_of_token(token)).get("/v1/ping")
    client_of(ROOT).get("/v1/ping")
    keys = {key for key in live.client().scan_iter() if key.startswith("sgm:throttle:")}
    assert keys == {
        "sgm:throttle:rest:client:test-client",
        f"sgm:throttle:rest:token:{token.pk}",
        "sgm:throttle:rest:token:root",
    }


@pytest.mark.django_db
@pytest.mark.usefixtures("away")
def test_api_answers_as_ever_without_redis(settings: Settings) -> None:
    settings.SGM_THROTTLE_CLIENT = settings.SGM_THROTTLE_TOKEN = Rate(1, 3600)
    assert statuses(client_of(ROOT), "/v1/sites", 5) == [200] * 5


# --- the token endpoint ---------------------------------------------------------------------------------------


@pytest.mark.django_db
@pytest.mark.usefixtures("counting", "key_file")
def test_client_gets_a_limited_amount_of_tokens(client: Client, settings: Settings) -> None:
    settings.SGM_THROTTLE_ISSUER = TEN_AN_HOUR
    since_s = time.monotonic()
    assert [post_json(client, guide_body()).status_code for _ in range(10)] == [200] * 10
    response = post_json(client, guide_body())
    assert response.status_code == 429
    assert is_an_interval(int(response["Retry-After"]), since_s=since_s)
    assert response["Cache-Control"] == "no-store"
    assert json.loads(response.content)["error"] == "temporarily_unavailable"


@pytest.mark.django_db
@pytest.mark.usefixtures("counting", "key_file")
def test_made_up_clients_share_one_bucket_and_hold_up_no_real_one(client: Client, settings: Settings) -> None:
    settings.SGM_THROTTLE_ISSUER = TEN_AN_HOUR
    answers = [post_json(client, guide_body(client_id=f"nobody-{number}")) for number in range(11)]
    assert [answer.status_code for answer in answers] == [401] * 10 + [429]
    assert post_json(client, guide_body()).status_code == 200


@pytest.mark.django_db
@pytest.mark.usefixtures("away", "key_file")
def test_tokens_are_issued_without_redis(client: Client, settings: Settings) -> None:
    settings.SGM_THROTTLE_ISSUER = Rate(1, 3600)
    assert [post_json(client, guide_body()).status_code for _ in range(3)] == [200] * 3
