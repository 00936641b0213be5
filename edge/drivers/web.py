"""HTTP as devices speak it: one request at a time to one server, bounded in time and in size.

The only driver module that knows httpx. What is in a request and in its answer is its protocol's matter.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

import httpx

from edge.drivers.errors import DeviceRefused, DeviceUnreachable, DriverError

# It would tell each request, and the whole URL of it, which may hold a secret.
logging.getLogger("httpx").setLevel(logging.WARNING)

# A server closes what is idle after five seconds or more; a request that meets that moment would be lost.
KEPT_FOR_S = 4.0
# `struct linger`: on, and no time for it; and off.
DISCARD = struct.pack("ii", 1, 0)
DELIVER = struct.pack("ii", 0, 0)
MAX_SHOWN = 200
OK, MULTIPLE, BAD, SERVER_ERROR = 200, 300, 400, 500
UNAUTHORIZED, FORBIDDEN, NOT_FOUND, NOT_ALLOWED, TOO_SLOW, TOO_MANY = 401, 403, 404, 405, 408, 429


class Answer(NamedTuple):
    """What came back. `kind`: the media type without parameters, in lower case; `location`: of a redirect."""

    status: int
    kind: str
    body: bytes
    location: str = ""

    @property
    def is_success(self) -> bool:
        return OK <= self.status < MULTIPLE


class _TooLong(Exception):  # noqa: N818 - states the fault
    """An answer that is longer than any should be."""


class _Encoded(Exception):  # noqa: N818 - states the fault
    """An answer that is packed, although that was not wanted: unpacked, it may be of any size."""


@lru_cache(maxsize=1)
def _trusting_system() -> ssl.SSLContext:
    """What this computer trusts, so that a plant's own authority can be added there."""
    return ssl.create_default_context()


@lru_cache(maxsize=1)
def _trusting_nobody() -> ssl.SSLContext:
    """For plain HTTP: loading certificates that are never used costs 20 ms at each connect."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


class WebSession:
    """One server, asked by one task at a time; see `edge.drivers.base.Session`.

    Each command is one request, never repeated from here unless the server wants to be told who asks: then
    nothing of it was carried out. `url` is the device's whole URL. With a user name, digest authentication is
    used where the server offers it, else basic. Redirects are not followed, proxies of the environment not
    used. An answer ends within `timeout_s` and has at most `max_answer` bytes.

    A connection is made as a command needs one, and kept for some seconds: `connect` only looks whether
    somebody listens.
    """

    # Bytes of an answer; a protocol says what its servers may need.
    max_answer: int

    def __init__(
        self,
        *,
        url: str,
        username: str = "",
        password: str = "",
        timeout_s: float,
        min_gap_s: float,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        parts = urlsplit(url)
        self.url = url
        # What follows a question mark may be a secret.
        self.endpoint = urlunsplit((parts.scheme, parts.netloc, parts.path, "", ""))
        self._secure = parts.scheme == "https"
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if self._secure else 80)
        self.username = username
        self.password = password
        self._timeout_s = timeout_s
        self._min_gap_s = min_gap_s
        self._clock = clock
        self._sleep = sleep
        self._client: httpx.AsyncClient | None = None
        # The connection in use: its stream, and what is beneath it.
        self._stream: Any = None
        self._socket: Any = None
        self._digest = httpx.DigestAuth(username, password)
        self._basic: httpx.BasicAuth | None = None
        self._next_command_at = 0.0
        # Counts connects, so that a driver knows when what it has learned is gone.
        self.generation = 0

    @property
    def connected(self) -> bool:
        return self._client is not None

    @property
    def next_command_at(self) -> float:
        """Boot-time seconds before which no command may start; 0 where no gap is kept."""
        return self._next_command_at

    async def connect(self) -> None:
        """Look whether the server listens; `DeviceUnreachable` says why not."""
        await self.aclose()
        try:
            async with asyncio.timeout(self._timeout_s):
                _, writer = await asyncio.open_connection(self._host, self._port)
        except TimeoutError as error:
            raise DeviceUnreachable(
                f"no connection to {self.endpoint} within {self._timeout_s:g} s"
            ) from error
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
            raise DeviceUnreachable(f"no connection to {self.endpoint}: {reason}") from error
        # At once: a server that takes one connection would find the next one too many.
        writer.transport.abort()
        self._client = httpx.AsyncClient(
            verify=_trusting_system() if self._secure else _trusting_nobody(),
            timeout=None,  # noqa: S113 - ours is over all of it, and not from byte to byte
            limits=httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=KEPT_FOR_S),
            trust_env=False,
            follow_redirects=False,
        )
        self.generation += 1

    async def aclose(self) -> None:
        client, stream = self._client, self._stream
        self._client = self._stream = self._socket = None
        if client is not None:
            await client.aclose()
        if stream is not None:
            # The client forgets a connection that ends before its TLS has begun.
            await stream.aclose()

    async def exchange(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        body: bytes | None = None,
        introduces: bool = True,
    ) -> Answer:
        """Carry out one request; whatever the server answers is an answer.

        `introduces`: tell a server that asks for it who this is, with user name and password.

        `DeviceUnreachable` where none comes in time, in one piece and of a size. The connection is dropped
        then: what was given up is not delivered later.
        """
        if self._min_gap_s:
            # In a loop: a timer may fire a little early, and the device does not forgive that.
            while (wait_s := self._next_command_at - self._clock()) > 0:
                await self._sleep(wait_s)
        client = self._client
        if client is None:
            raise DeviceUnreachable(f"not connected to {self.endpoint}")
        self._linger(DISCARD)
        try:
            request = client.build_request(
                method,
                url,
                headers={
                    name.encode(): text.encode()
                    for name, text in {"Accept-Encoding": "identity", **headers}.items()
                },
                content=body,
                extensions={"trace": self._trace},
            )
            async with asyncio.timeout(self._timeout_s):
                answer = await self._ask(client, request, introduces=introduces and bool(self.username))
        except TimeoutError as error:
            await self.aclose()
            raise DeviceUnreachable(f"no answer from {self.endpoint} within {self._timeout_s:g} s") from error
        except _TooLong as error:
            await self.aclose()
            raise DeviceUnreachable(
                f"{self.endpoint} answered with more than {self.max_answer} bytes"
            ) from error
        except _Encoded as error:
            await self.aclose()
            raise DeviceUnreachable(
                f"{self.endpoint} answered with content encoded as {error}, asked for none"
            ) from error
        except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL, OSError) as error:
            await self.aclose()
            raise DeviceUnreachable(self._broken(error)) from error
        except BaseException:
            # Cancelled, for one: the answer may still come, and nobody waits for it.
            await self.aclose()
            raise
        finally:
            if self._min_gap_s:
                self._next_command_at = self._clock() + self._min_gap_s
        self._linger(DELIVER)
        # Nobody logs in by cookie; a device that sets ever more of them would find them all in each request.
        client.cookies.clear()
        return answer

    def refusal(self, answer: Answer, *, what: str) -> DriverError:
        """The error that an answer without success is. `what`: what was asked, as in "refused to read x"."""
        status, where = answer.status, self.endpoint
        if status == UNAUTHORIZED:
            todo = (
                "check the device's user name and password"
                if self.username or self.password
                else "set a user name and password"
            )
            return DeviceRefused(f"{where} refused to {what}: it wants to know who asks; {todo} (HTTP 401)")
        if status == FORBIDDEN:
            return DeviceRefused(
                f"{where} refused to {what}: not allowed to this user; give the device's account the right to"
                " (HTTP 403)"
            )
        if MULTIPLE <= status < BAD:
            return DeviceRefused(
                f"{where} refused to {what}: it says to look at {shown(answer.location)!r}; if that is right,"
                f" make it the device's URL (HTTP {status})"
            )
        if status in (NOT_FOUND, NOT_ALLOWED):
            return DeviceRefused(
                f"{where} refused to {what}: there is no such thing; check the URL (HTTP {status})"
            )
        if status in (TOO_SLOW, TOO_MANY) or status >= SERVER_ERROR or status < OK:
            return DeviceUnreachable(f"{where} could not {what} (HTTP {status}){self._words(answer)}")
        return DeviceRefused(f"{where} refused to {what} (HTTP {status}){self._words(answer)}")

    @staticmethod
    def _words(answer: Answer) -> str:
        """What the server says to it, where that can be read."""
        text = answer.body[:1000].decode(errors="replace").strip()
        return f": {shown(text)}" if text and not text.startswith("<") else ""

    def _broken(self, error: Exception) -> str:
        if self._secure and isinstance(error, httpx.ConnectError):
            return f"no secure connection to {self.endpoint}: {shown(str(error))}"
        if isinstance(error, httpx.ConnectError):
            return f"no connection to {self.endpoint}: {shown(str(error))}"
        return f"the connection to {self.endpoint} broke: {shown(str(error)) or type(error).__name__}"

    async def _ask(self, client: httpx.AsyncClient, request: httpx.Request, *, introduces: bool) -> Answer:
        if not introduces:
            return (await self._send(client, request))[1]
        flow = self._authorised(request)
        request = next(flow)
        while True:
            # Not by httpx' own means: it would read all of an answer before it asks again.
            response, answer = await self._send(client, request)
            try:
                request = flow.send(response)
            except StopIteration:
                return answer
            except (httpx.ProtocolError, KeyError, ValueError, AssertionError, NotImplementedError) as error:
                raise DeviceRefused(
                    f"{self.endpoint} wants to know who asks in a way that is not known here:"
                    f" {shown(response.headers.get('www-authenticate', ''))}"
                ) from error

    def _authorised(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response]:
        """The requests that it takes to be let in, each but the first after the answer to the one before."""
        if self._basic is not None:
            yield from self._basic.auth_flow(request)
            return
        # Without a word of the password before the server has said how it wants it.
        flow = self._digest.auth_flow(request)
        response = yield next(flow)
        if response.status_code != UNAUTHORIZED:
            return
        offered = [one.strip().lower() for one in response.headers.get_list("www-authenticate")]
        if any(one.startswith("digest ") for one in offered):
            yield flow.send(response)
        elif any(one.startswith("basic") for one in offered):
            self._basic = httpx.BasicAuth(self.username, self.password)
            yield from self._basic.auth_flow(request)

    async def _send(self, client: httpx.AsyncClient, request: httpx.Request) -> tuple[httpx.Response, Answer]:
        response = await client.send(request, stream=True, auth=None)
        try:
            encoding = response.headers.get("content-encoding", "identity").strip().lower()
            if encoding != "identity":
                raise _Encoded(shown(encoding))
            body = bytearray()
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > self.max_answer:
                    raise _TooLong
        finally:
            await response.aclose()
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        answer = Answer(response.status_code, kind, bytes(body), response.headers.get("location", ""))
        return response, answer

    async def _trace(self, event: str, info: Mapping[str, Any]) -> None:
        if event == "connection.connect_tcp.complete":
            self._stream = info["return_value"]
            self._socket = self._stream.get_extra_info("socket")
            self._linger(DISCARD)

    def _linger(self, how: bytes) -> None:
        """Have a connection that ends under a command take it along; or have it end in peace.

        The system would deliver the command once a pulled cable is back: an old value after a newer one.
        """
        if self._socket is not None:
            with suppress(OSError):  # closed by now
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, how)


def shown(text: str) -> str:
    """A server's own words, short enough and printable."""
    return "".join(letter if letter.isprintable() else " " for letter in text)[:MAX_SHOWN].strip()
