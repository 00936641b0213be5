"""What is sent again, and what never is."""

from __future__ import annotations

import pytest

from sgm import ApiError, Client, Conflict, NotFound, ServerError, Throttled, Unreachable
from tests.client.conftest import HANG_UP, Says, Scripted, Waits, error, settings_of

SITE = "01751407-d87b-4d89-b47f-cca4dfb85a92"
CURTAIL = f"/sites/{SITE}/curtail-category"
DONE = {"status": "success", "result": {"updated": {"A": None}, "not_updated": {}}}
PONG = Says(body={"ping": "pong!"})


def curtail(client: Client, idempotency_key: str | None = None):
    return client.curtail(SITE, category="inverter", value=50, idempotency_key=idempotency_key)


def test_reading_is_repeated_when_the_connection_is_lost(server: Scripted, client: Client, waits: Waits):
    server.on("GET", "/ping", Says(body=HANG_UP), Says(body=HANG_UP), PONG)
    assert client.ping()
    assert waits.waited_s == [0.25, 0.5]


def test_reading_is_given_up_after_four_tries(server: Scripted, client: Client):
    server.on("GET", "/ping", Says(body=HANG_UP))
    with pytest.raises(Unreachable) as caught:
        client.ping()
    assert len(server.asked) == 4
    assert not caught.value.was_sent


def test_retry_after_is_waited_out(server: Scripted, client: Client, waits: Waits):
    server.on("GET", "/ping", error(429, "throttled", Retry_After="7"), PONG)
    assert client.ping()
    assert 7 <= waits.waited_s[0] < 8


def test_retry_after_beyond_patience_is_told_instead(server: Scripted, client: Client, waits: Waits):
    server.on("GET", "/ping", error(429, "throttled", Retry_After="3600"))
    with pytest.raises(Throttled) as caught:
        client.ping()
    assert caught.value.retry_after_s == 3600
    assert waits.waited_s == []


def test_control_request_is_repeated_under_the_same_key(server: Scripted, client: Client):
    server.on("PUT", CURTAIL, Says(body=HANG_UP), Says(body=DONE))
    answer = curtail(client)
    first, second = (asked.headers["idempotency-key"] for asked in server.asked)
    assert first == second == answer.idempotency_key


def test_each_control_request_has_a_key_of_its_own(server: Scripted, client: Client):
    server.on("PUT", CURTAIL, Says(body=DONE))
    curtail(client)
    curtail(client)
    first, second = (asked.headers["idempotency-key"] for asked in server.asked)
    assert first != second


def test_control_request_in_progress_is_awaited_only_if_it_is_ours(server: Scripted, client: Client):
    busy = error(409, "idempotency_in_progress", Retry_After="1")
    server.on("PUT", CURTAIL, Says(body=HANG_UP), busy, Says(body=DONE))
    assert curtail(client).is_done
    server.on("PUT", CURTAIL, busy, Says(body=DONE))
    with pytest.raises(Conflict):
        curtail(client, idempotency_key="somebody else's")


def test_control_request_that_was_not_sent_is_sent_again(server: Scripted, client: Client, waits: Waits):
    server.on("PUT", CURTAIL, error(503, "dispatch_unavailable", Retry_After="1"), Says(body=DONE))
    assert curtail(client).is_done
    assert 1 <= waits.waited_s[0] < 2


def test_control_request_does_not_arrive_late(server: Scripted, client: Client, waits: Waits):
    server.on("PUT", CURTAIL, error(503, "dispatch_unavailable", Retry_After="6"))
    with pytest.raises(ServerError):
        curtail(client)
    assert sum(waits.waited_s) <= 10


def test_lost_control_request_says_that_it_may_have_been_done(server: Scripted, client: Client):
    server.on("PUT", CURTAIL, Says(body=HANG_UP))
    with pytest.raises(Unreachable) as caught:
        curtail(client)
    assert caught.value.was_sent


@pytest.mark.parametrize("says", [Says(body=HANG_UP), error(503, "database_unavailable", Retry_After="1")])
def test_create_is_never_sent_twice_when_it_may_have_been_done(server: Scripted, client: Client, says: Says):
    server.on("POST", "/auth-tokens", says)
    with pytest.raises((Unreachable, ServerError)):
        client.token_create(name="A", sites=[SITE])
    assert len(server.asked) == 1


def test_delete_is_not_repeated_when_the_answer_is_lost(server: Scripted, client: Client):
    server.on("DELETE", "/auth-tokens/1", Says(body=HANG_UP))
    with pytest.raises(Unreachable):
        client.token_delete("1")
    assert len(server.asked) == 1


def test_nobody_there_is_told_as_certainly_not_sent(waits: Waits, unused_tcp_port: int):
    with (
        Client(
            settings_of(f"http://127.0.0.1:{unused_tcp_port}"), keeps_token=False, patience=waits.patience
        ) as client,
        pytest.raises(Unreachable) as caught,
    ):
        curtail(client)
    assert not caught.value.was_sent


def test_refusal_is_told_with_status_code_fields_and_request_id(server: Scripted, client: Client):
    body = {
        "detail": "value: too much",
        "code": "invalid",
        "errors": {"value": ["too much"]},
        "request_id": "abc",
    }
    server.on("PUT", CURTAIL, Says(status=400, body=body))
    with pytest.raises(ApiError) as caught:
        curtail(client)
    found = caught.value
    assert (found.status, found.code, found.errors, found.request_id) == (
        400,
        "invalid",
        {"value": ["too much"]},
        "abc",
    )
    assert len(server.asked) == 1


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"", b'{"errors": 3, "detail": 4}'])
def test_refusal_of_something_else_is_an_error_too(server: Scripted, client: Client, body: bytes):
    server.on("GET", "/ping", Says(status=404, body=body))
    with pytest.raises(NotFound):
        client.ping()


def test_redirect_is_not_followed_with_credentials(server: Scripted, client: Client):
    server.on("GET", "/ping", Says(status=302, headers={"Location": "/v1/elsewhere"}))
    with pytest.raises(ApiError):
        client.ping()
    assert [asked.path for asked in server.asked] == ["/v1/ping"]
