"""One bearer token for all processes of a user, renewed in time, and shown to nobody."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

import pytest

from sgm import Client, TokenRefused, Unauthorized
from sgm.bearer import Bearer
from sgm.http import Http
from tests.client.conftest import Says, Scripted, Waits, error, settings_of

PONG = Says(body={"ping": "pong!"})


def bearer_of(
    server: Scripted, cache: Path | None, *, now: list[float] | None = None, **changes: str
) -> Bearer:
    clock = now or [1000.0]
    return Bearer(settings_of(server.url, **changes), Http(), cache=cache, clock=lambda: clock[0])


def test_token_is_fetched_once_for_many_processes(server: Scripted, tmp_path: Path):
    assert [bearer_of(server, tmp_path).token() for _ in range(3)] == ["token-1"] * 3
    assert server.tokens_given == 1


def test_many_at_once_fetch_one_token(server: Scripted, tmp_path: Path):
    bearers = [bearer_of(server, tmp_path) for _ in range(8)]
    threads = [threading.Thread(target=bearer.token) for bearer in bearers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=10)
    assert server.tokens_given == 1


def test_token_is_renewed_before_it_expires(server: Scripted, tmp_path: Path):
    now = [1000.0]
    bearer = bearer_of(server, tmp_path, now=now)
    bearer.token()
    now[0] += 86400 - 301
    assert bearer.token() == "token-1"
    now[0] += 2
    assert bearer.token() == "token-2"


def test_other_client_and_other_issuer_have_tokens_of_their_own(server: Scripted, tmp_path: Path):
    bearer_of(server, tmp_path).token()
    assert bearer_of(server, tmp_path, client_id="another").token() == "token-2"
    assert bearer_of(server, tmp_path, audience="elsewhere").token() == "token-3"


def test_file_is_for_its_owner_alone(server: Scripted, tmp_path: Path):
    bearer_of(server, tmp_path / "cache").token()
    for path in (tmp_path / "cache").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o700


def test_file_that_others_may_read_is_not_believed(server: Scripted, tmp_path: Path):
    bearer_of(server, tmp_path).token()
    (file,) = tmp_path.glob("*.json")
    file.chmod(0o644)
    assert bearer_of(server, tmp_path).token() == "token-2"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "content", ["", "null", "{", '{"access_token": 1}', '{"access_token": "x", "renew_at": []}']
)
def test_damaged_file_costs_a_fetch(server: Scripted, tmp_path: Path, content: str):
    bearer_of(server, tmp_path).token()
    (file,) = tmp_path.glob("*.json")
    file.write_text(content)
    assert bearer_of(server, tmp_path).token() == "token-2"


def test_directory_that_cannot_be_made_costs_only_the_cache(server: Scripted, tmp_path: Path):
    (tmp_path / "file").write_text("")
    assert bearer_of(server, tmp_path / "file" / "cache").token() == "token-1"


def test_expired_token_is_renewed_once_and_the_request_repeated(server: Scripted, client: Client):
    server.on("GET", "/ping", error(401, "bearer_expired"), PONG)
    assert client.ping()
    assert [asked.headers["authorization"] for asked in server.asked] == ["Bearer token-1", "Bearer token-2"]


def test_token_that_is_refused_again_is_an_error(server: Scripted, client: Client):
    server.on("GET", "/ping", error(401, "bearer_invalid"))
    with pytest.raises(Unauthorized):
        client.ping()
    assert server.tokens_given == 2


def test_bad_management_token_costs_no_bearer_token(server: Scripted, client: Client):
    server.on("GET", "/ping", error(401, "management_token_invalid"))
    with pytest.raises(Unauthorized):
        client.ping()
    assert server.tokens_given == 1


def test_refused_client_is_told_in_the_issuer_s_words(server: Scripted, client: Client):
    server.token_refusal = Says(status=401, body={"error": "invalid_client", "error_description": "Unknown."})
    with pytest.raises(TokenRefused, match="Unknown"):
        client.ping()
    assert server.asked == []


def test_busy_issuer_is_asked_again(server: Scripted, tmp_path: Path, waits: Waits):
    server.token_refusal = Says(status=429, body={}, headers={"Retry-After": "2"})
    bearer = Bearer(settings_of(server.url), Http(), cache=tmp_path, patience=waits.patience)
    with pytest.raises(Exception, match="429"):
        bearer.token()
    assert len(waits.waited_s) == 3


def test_no_secret_stands_in_what_is_printed(server: Scripted, client: Client):
    client.settings.__repr__()
    assert "a secret" not in repr(client.settings)
    assert "tok_1" not in repr(client.settings)
