"""Bodies are of a known length, of bounded size, and no more at once than threads can be spared."""

from __future__ import annotations

import io
import threading
from typing import Any

import pytest
from django.test import Client

from smartgrid.bodies import BodiesBusy, bodies_bounded
from tests.factories import ROOT, Story, client_of, story_make

MIB = 1024 * 1024


class UnreadBody(io.RawIOBase):
    """A body that must not be read."""

    def readable(self) -> bool:
        return True

    def readinto(self, _buffer: Any) -> int:
        raise AssertionError("somebody read it")


def of_body(body: object) -> dict[str, Any]:
    """As the test client takes it."""
    return {"wsgi.input": body}


class SilentBody:
    """A body that does not come before the test is over."""

    def __init__(self) -> None:
        self.reached, self.over = threading.Event(), threading.Event()

    def read(self, _size: int = -1) -> bytes:
        self.reached.set()
        self.over.wait(30)
        return b""


@pytest.mark.parametrize("path", ["/v1/sites/x/curtail-category", "/v1/no-such-path", "/oauth/token"])
@pytest.mark.django_db
def test_body_that_is_declared_too_large_is_refused_unread(path: str) -> None:
    response = client_of(ROOT).generic(
        "PUT",
        path,
        content_type="application/json",
        CONTENT_LENGTH=str(MIB + 1),
        **of_body(UnreadBody()),
    )
    assert response.status_code == 413
    assert response.json()["code"] == "payload_too_large"
    assert response.json()["request_id"] == response["X-Request-ID"]


@pytest.mark.parametrize("declared", ["9" * 5000, "1" * 20])
@pytest.mark.django_db
def test_length_may_be_any_number(declared: str) -> None:
    response = client_of(ROOT).generic("PUT", "/v1/ping", CONTENT_LENGTH=declared)
    assert response.status_code == 413


@pytest.mark.django_db
def test_console_takes_files_that_the_api_would_not(client: Client) -> None:
    def post(length: int) -> int:
        body = {"CONTENT_LENGTH": str(length), "content_type": "text/plain"}
        return client.generic("POST", "/admin/login/", b"x", **body).status_code  # type: ignore[arg-type]

    assert post(2 * MIB) != 413
    assert post(4 * MIB + 1) == 413


@pytest.mark.django_db
def test_body_of_unknown_length_is_not_taken_for_none() -> None:
    story: Story = story_make()
    response = story.holder_a.generic(
        "POST",
        f"/v1/sites/{story.site_a.pk}/release",
        content_type="application/json",
        HTTP_TRANSFER_ENCODING="chunked",
        CONTENT_LENGTH="",
        **of_body(UnreadBody()),
    )
    assert response.status_code == 411
    assert response.json()["code"] == "length_required"


@pytest.mark.django_db
def test_thousand_parameters_are_malformed() -> None:
    story: Story = story_make()
    for path in ("/v1/sites", f"/v1/sites/{story.site_a.pk}/telemetry", "/v1/logs"):
        response = story.holder_a.get(path + "?" + "a=1&" * 1001)
        assert response.status_code == 400, path
        assert response.json()["code"] == "malformed"


def environ_of(body: Any, *, path: str = "/v1/x", length: str | None = "3") -> dict[str, Any]:
    return {"PATH_INFO": path, "CONTENT_LENGTH": length, "wsgi.input": body}


def reading(environ: dict[str, Any], _start: Any) -> list[bytes]:
    return [environ["wsgi.input"].read(3)]


def test_body_that_is_there_is_read_whole() -> None:
    application = bodies_bounded(reading)
    assert [application(environ_of(io.BytesIO(b"abc")), None) for _ in range(200)] == [[b"abc"]] * 200


@pytest.mark.parametrize("path", ["/v1/x", "/oauth/token"])
def test_bodies_beyond_those_there_is_a_place_for_are_refused_until_one_is_free(path: str) -> None:
    application = bodies_bounded(reading, api=2, others=2)
    silent = [SilentBody(), SilentBody()]
    threads = [
        threading.Thread(target=application, args=(environ_of(body, path=path), None)) for body in silent
    ]
    for thread, body in zip(threads, silent, strict=True):
        thread.start()
        assert body.reached.wait(10)
    with pytest.raises(BodiesBusy):
        application(environ_of(io.BytesIO(b"abc"), path=path), None)
    elsewhere = "/admin/" if path == "/v1/x" else "/v1/x"
    assert application(environ_of(io.BytesIO(b"abc"), path=elsewhere), None) == [b"abc"]
    silent[0].over.set()
    threads[0].join(10)
    assert application(environ_of(io.BytesIO(b"abc"), path=path), None) == [b"abc"]
    silent[1].over.set()
    threads[1].join(10)


def test_read_that_breaks_off_gives_its_place_back() -> None:
    class Broken:
        def read(self, _size: int) -> bytes:
            raise ConnectionResetError

    application = bodies_bounded(reading, api=1)
    for _ in range(3):
        with pytest.raises(ConnectionResetError):
            application(environ_of(Broken()), None)


@pytest.mark.parametrize("length", [None, "", "0"])
def test_request_without_a_body_is_passed_on_as_it_is(length: str | None) -> None:
    body = io.BytesIO(b"abc")
    seen: list[Any] = []

    def application(environ: dict[str, Any], _start: Any) -> list[bytes]:
        seen.append(environ["wsgi.input"])
        return []

    bodies_bounded(application)(environ_of(body, length=length), None)
    assert seen == [body]


@pytest.mark.django_db
def test_body_that_cannot_be_read_is_told_of_and_may_come_again() -> None:
    class Broken(io.RawIOBase):
        def read(self, _size: int = -1) -> bytes:
            raise BodiesBusy

    story: Story = story_make()
    response = story.holder_a.generic(
        "PUT",
        f"/v1/sites/{story.site_a.pk}/curtail-category",
        content_type="application/json",
        CONTENT_LENGTH="10",
        **of_body(Broken()),
    )
    assert response.status_code == 503
    assert (response.json()["code"], response["Retry-After"]) == ("body_unread", "1")
