"""The bearer token: fetched from the issuer, kept in memory and on disk, renewed before it expires.

Issuers give out a limited number of tokens, so all processes of a user share one through a file of their own
(0600, below XDG_CACHE_HOME). Of several that need a new one at once, one fetches it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path

from sgm.errors import AnswerInvalid, TokenRefused, Unreachable
from sgm.http import Answer, Http, NoAnswer, NotSent
from sgm.repeats import Patience
from sgm.settings import Settings, private_write

# Renewed when a tenth of its life is left, and at most this early.
RENEW_BEFORE_S = 300.0
# How long one waits for another process that is fetching; then it fetches for itself.
TURN_S = 10.0
_TURN_POLL_S = 0.05
_NOT_NOW = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE)


@dataclass(frozen=True, slots=True)
class _Held:
    token: str = field(repr=False)
    # Of the wall clock, which outlives processes: one that jumps costs a fetch, or a 401 and a fetch.
    renew_at: float


class Bearer:
    """One client's token at one issuer, for any number of threads and processes."""

    def __init__(
        self,
        settings: Settings,
        http: Http,
        *,
        cache: Path | None,
        clock: Callable[[], float] = time.time,
        patience: Callable[[], Patience] = Patience,
    ) -> None:
        """`cache` is the directory that processes share; None: nothing is written."""
        self._settings = settings
        self._http = http
        self._clock = clock
        self._patience = patience
        self._lock = threading.Lock()
        self._held: _Held | None = None
        self._refused: set[str] = set()
        whose = f"{settings.token_url}\n{settings.client_id}\n{settings.audience}"
        self._file = cache / f"{hashlib.sha256(whose.encode()).hexdigest()[:32]}.json" if cache else None

    def token(self) -> str:
        """A token that is good for a while yet; `TokenRefused` or `Unreachable` where none can be had."""
        with self._lock:
            if self._held is None or not self._serves(self._held):
                self._held = self._renewed()
            return self._held.token

    def refuse(self, token: str) -> None:
        """Use this token no more: the API did not take it, whatever its time."""
        with self._lock:
            self._refused.add(token)

    def forget(self) -> None:
        """Leave nothing behind, in memory or on disk."""
        with self._lock:
            self._held = None
            if self._file is not None:
                self._file.unlink(missing_ok=True)

    def _serves(self, held: _Held) -> bool:
        return held.token not in self._refused and self._clock() < held.renew_at

    def _renewed(self) -> _Held:
        with self._turn():
            kept = self._read()
            if kept is not None and self._serves(kept):
                return kept
            fetched = self._fetch()
            self._write(fetched)
            return fetched

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """One process at a time; none waits for ever for one that hangs."""
        if self._file is None:
            yield
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(
                self._file.with_suffix(".lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600
            )
        except OSError:
            yield
            return
        try:
            ends_at = time.monotonic() + TURN_S
            while time.monotonic() < ends_at:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(_TURN_POLL_S)
                except OSError:
                    # A file system without locks.
                    break
            yield
        finally:
            os.close(descriptor)

    def _read(self) -> _Held | None:
        if self._file is None:
            return None
        try:
            with self._file.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_uid != os.getuid() or status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                    return None
                content = json.load(file)
            return _Held(token=str(content["access_token"]), renew_at=float(content["renew_at"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _write(self, held: _Held) -> None:
        if self._file is not None:
            # Where nothing can be kept each process fetches its own.
            with suppress(OSError):
                content = {"access_token": held.token, "renew_at": held.renew_at}
                private_write(self._file, json.dumps(content))

    def _fetch(self) -> _Held:
        patience = self._patience()
        body = {
            "audience": self._settings.audience,
            "grant_type": "client_credentials",
            "client_id": self._settings.client_id,
            "client_secret": self._settings.client_secret,
        }
        while True:
            try:
                answer = self._http.send("POST", self._settings.token_url, json=body)
            except (NotSent, NoAnswer) as error:
                if patience.wait("the token issuer does not answer"):
                    continue
                raise Unreachable(
                    f"The token issuer {self._settings.token_url} does not answer: {error}", was_sent=False
                ) from error
            if answer.status == HTTPStatus.OK:
                return self._held_of(answer)
            if answer.status in _NOT_NOW and patience.wait(
                "the token issuer is busy", retry_after_s=retry_after(answer)
            ):
                continue
            raise self._refusal(answer)

    def _held_of(self, answer: Answer) -> _Held:
        try:
            content = answer.json()
            token, lives_s = str(content["access_token"]), float(content.get("expires_in", 0))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise AnswerInvalid(
                f"{self._settings.token_url} gave no token: is it a token endpoint?"
            ) from error
        if not token.isascii() or not token.isprintable():
            raise AnswerInvalid(f"{self._settings.token_url} gave no usable token.")
        return _Held(token=token, renew_at=self._clock() + lives_s - min(RENEW_BEFORE_S, lives_s / 10))

    def _refusal(self, answer: Answer) -> TokenRefused | Unreachable | AnswerInvalid:
        try:
            content = answer.json()
            why = str(content.get("error_description") or content.get("error") or content.get("detail") or "")
        except (ValueError, AttributeError):
            why = ""
        if answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR or answer.status == HTTPStatus.TOO_MANY_REQUESTS:
            return Unreachable(f"The token issuer answers {answer.status}. {why}".strip(), was_sent=False)
        if answer.status in (HTTPStatus.BAD_REQUEST, HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            return TokenRefused(f"The token issuer refused client id or secret: {why or answer.status}.")
        return AnswerInvalid(f"{self._settings.token_url} answers {answer.status}: is it a token endpoint?")


def retry_after(answer: Answer) -> float | None:
    """The seconds that `Retry-After` names; None where it names none, or a date, which needs equal clocks."""
    text = answer.headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdigit() else None


def cache_directory() -> Path | None:
    """Where a user's processes share tokens; None where the user has no home."""
    base = os.environ.get("XDG_CACHE_HOME")
    if base:
        return Path(base) / "sgm" / "tokens"
    try:
        return Path.home() / ".cache" / "sgm" / "tokens"
    except RuntimeError:
        return None
