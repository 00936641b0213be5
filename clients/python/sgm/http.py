"""Requests over HTTP, and what became of them: the only module which imports httpx."""

from __future__ import annotations

import json as json_of
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

CONNECT_S = 5.0
# Central answers a control request within 8 s; the rest is for slow lines.
ANSWER_S = 30.0

Query = Mapping[str, str | Sequence[str]]


class NotSent(Exception):  # noqa: N818 - states the fault
    """No connection came about: certainly nobody saw the request."""


class NoAnswer(Exception):  # noqa: N818
    """The connection broke or stayed silent: the request may have been acted on."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON; `ValueError` where it is none."""
        return json_of.loads(self.body)


class Stream:
    """An answer whose body comes bit by bit."""

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self.status = response.status_code
        self.headers = _headers(response)

    def read(self) -> Answer:
        """All of it, for an answer that turned out to be a refusal."""
        with _translated():
            return Answer(self.status, self.headers, self._response.read())

    def pieces(self) -> Iterator[bytes]:
        with _translated():
            yield from self._response.iter_bytes()


class Http:
    """A pool of connections. No redirect is followed: credentials go where they were meant to, or nowhere."""

    def __init__(self, *, answer_s: float = ANSWER_S) -> None:
        self._answer_s = answer_s
        self._client = httpx.Client(
            timeout=httpx.Timeout(answer_s, connect=CONNECT_S), follow_redirects=False
        )

    def close(self) -> None:
        self._client.close()

    def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        query: Query | None = None,
        json: Any = None,
    ) -> Answer:
        """Send and wait for the whole answer; `NotSent` or `NoAnswer` where there is none."""
        content, kind = _content(json)
        with _translated():
            response = self._client.request(
                method, url, headers={**kind, **(headers or {})}, params=_query(query), content=content
            )
            return Answer(response.status_code, _headers(response), response.content)

    @contextmanager
    def stream(
        self, url: str, *, headers: Mapping[str, str], query: Query | None = None, silence_s: float
    ) -> Iterator[Stream]:
        """GET an answer that does not end; `NoAnswer` after so many seconds without a byte."""
        timeout = httpx.Timeout(silence_s, connect=CONNECT_S)
        with (
            _translated(),
            self._client.stream(
                "GET", url, headers=dict(headers), params=_query(query), timeout=timeout
            ) as response,
        ):
            yield Stream(response)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError) as error:
        raise NotSent(_text(error)) from error
    except (httpx.UnsupportedProtocol, httpx.InvalidURL, UnicodeError) as error:
        raise NotSent(f"not an address: {_text(error)}") from error
    except httpx.TimeoutException as error:
        raise NoAnswer("no answer in time") from error
    except httpx.HTTPError as error:
        raise NoAnswer(_text(error)) from error


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__


def _headers(response: httpx.Response) -> Mapping[str, str]:
    return {name.lower(): value for name, value in response.headers.items()}


def _query(query: Query | None) -> httpx.QueryParams | None:
    if not query:
        return None
    return httpx.QueryParams(
        {
            name: _storable(value) if isinstance(value, str) else [_storable(one) for one in value]
            for name, value in query.items()
        }
    )


def _storable(text: str) -> str:
    # A name that came from a shell may hold bytes which are no text; nothing is called so.
    return text.encode("utf-8", errors="replace").decode()


def _content(json: Any) -> tuple[bytes | None, dict[str, str]]:
    if json is None:
        return None, {}
    return json_of.dumps(json, allow_nan=False).encode(), {"Content-Type": "application/json"}
