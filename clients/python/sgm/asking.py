"""One API, asked with both credentials: what is sent again, what is an answer and what an error."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, quote, urlsplit

from sgm.bearer import Bearer, retry_after
from sgm.decoding import Model, decode_list
from sgm.errors import AnswerInvalid, ApiError, ArgumentInvalid, Unreachable, kind_of_status
from sgm.events import Event, EventReader
from sgm.http import Answer, Http, NoAnswer, NotSent, Query, Stream
from sgm.repeats import STREAM_TRIES, STREAM_WAIT_IN_ALL_S, WAIT_IN_ALL_CONTROL_S, Patience, Repeat
from sgm.settings import Settings

PAGE = 500
KEY_LENGTH_MAX = 255
# Between two events comes a comment every 15 s: three that did not come are a lost connection.
SILENCE_S = 45.0

M = TypeVar("M", bound=Model)
_AGAIN = (HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT)


class Api:
    """Requests to one API; for any number of threads."""

    def __init__(
        self,
        settings: Settings,
        *,
        answer_s: float,
        cache: Path | None,
        patience: Callable[[], Patience],
        page: int,
    ) -> None:
        self._settings = settings
        self._page = page
        self._http = Http(answer_s=answer_s)
        self._patience = patience
        self.bearer = Bearer(settings, self._http, cache=cache, patience=patience)

    def close(self) -> None:
        self._http.close()

    def get(self, path: str, query: Mapping[str, str | Sequence[str] | None] | None = None) -> Any:
        return json_of(self._ask("GET", path, query=present(query or {})))

    def change(self, method: str, path: str, json: Any = None) -> Any:
        """The answer to a request that changes what is stored; None where it has no body."""
        repeat = Repeat.CREATES if method == "POST" else Repeat.REPLACES
        answer = self._ask(method, path, json=json, repeat=repeat)
        return None if answer.status == HTTPStatus.NO_CONTENT else json_of(answer)

    def ask_keyed(self, method: str, path: str, *, json: Any, key: str) -> Answer:
        """The answer to a request that is done once, however often it has to be sent."""
        if not 0 < len(key) <= KEY_LENGTH_MAX:
            raise ArgumentInvalid(f"An Idempotency-Key has 1 to {KEY_LENGTH_MAX} characters.")
        _refuse_header("the Idempotency-Key", key)
        patience = self._patience()
        patience.wait_s = min(patience.wait_s, WAIT_IN_ALL_CONTROL_S)
        headers = {"Idempotency-Key": key}
        return self._ask(method, path, json=json, headers=headers, repeat=Repeat.KEYED, patience=patience)

    def pages(self, kind: type[M], path: str, query: Mapping[str, str | None]) -> Iterator[M]:
        """All of a list, page by page; what comes twice because the list grew meanwhile is given once."""
        asked: Query = {**present(query), "limit": str(self._page)}
        seen: set[Any] = set()
        while True:
            answer = self._ask("GET", path, query=asked)
            for item in decode_list(kind, json_of(answer)):
                item_id = getattr(item, "id", None)
                if item_id not in seen:
                    seen.add(item_id)
                    yield item
            following = _next(answer.headers.get("link", ""))
            if following is None:
                return
            # Its query alone: behind a proxy its host may be one that only central knows.
            asked = following

    def events(
        self,
        query: Query,
        *,
        after: str | None,
        reconnects: bool,
        opened: Callable[[], None] | None,
    ) -> Iterator[Event]:
        _refuse_header("the id of the last event", after or "")
        reader = EventReader(last_id=after or "")
        patience = self._patience()
        while True:
            reader.begin()
            stood = False
            try:
                with self._events_open(query, reader.last_id) as stream:
                    stood = True
                    if opened is not None:
                        opened()
                    yield from reader.read(stream.pieces())
            except (NotSent, NoAnswer) as error:
                if not reconnects or not (stood or patience.wait("the events broke off.")):
                    raise Unreachable(
                        f"The events of {self._settings.api_url} broke off: {error}", was_sent=False
                    ) from error
            except ApiError as error:
                is_later = error.status == HTTPStatus.TOO_MANY_REQUESTS or error.status in _AGAIN
                if not (reconnects and is_later) or not patience.wait(
                    error.detail, retry_after_s=error.retry_after_s
                ):
                    raise
            if not reconnects:
                return
            if stood:
                # Whoever listens for days outlives a restart; who never heard a word learns soon why.
                patience = self._patience()
                patience.tries, patience.wait_s = STREAM_TRIES, STREAM_WAIT_IN_ALL_S
                patience.sleep(reader.retry_s * (0.5 + patience.draw() / 2))

    @contextmanager
    def _events_open(self, query: Query, last_id: str) -> Iterator[Stream]:
        """A stream that stands; refusals are errors, and a bearer token that has expired is renewed once."""
        is_renewed = False
        while True:
            bearer = self.bearer.token()
            headers = self._credentials(bearer) | {"Accept": "text/event-stream"}
            if last_id:
                headers["Last-Event-ID"] = last_id
            with ExitStack() as stack:
                stream = stack.enter_context(
                    self._http.stream(
                        f"{self._settings.api_url}/events", headers=headers, query=query, silence_s=SILENCE_S
                    )
                )
                if stream.status == HTTPStatus.OK:
                    yield stream
                    return
                error = refusal(stream.read())
            if is_renewed or not error.code.startswith("bearer_"):
                raise error
            is_renewed = True
            self.bearer.refuse(bearer)

    def _ask(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        json: Any = None,
        headers: Mapping[str, str] | None = None,
        repeat: Repeat = Repeat.SAFE,
        patience: Patience | None = None,
    ) -> Answer:
        """The answer, if it is none of refusal."""
        patience = patience or self._patience()
        where = self._settings.api_url
        may_have_been_sent = is_renewed = False
        while True:
            bearer = self.bearer.token()
            sent = {**self._credentials(bearer), **(headers or {})}
            try:
                answer = self._http.send(method, f"{where}{path}", headers=sent, query=query, json=json)
            except NotSent as error:
                if patience.wait(f"{where} does not answer"):
                    continue
                raise Unreachable(f"{where} does not answer: {error}", was_sent=may_have_been_sent) from error
            except NoAnswer as error:
                may_have_been_sent = repeat is not Repeat.SAFE
                if repeat in (Repeat.SAFE, Repeat.KEYED) and patience.wait("the connection was lost"):
                    continue
                raise Unreachable(f"{where} gave no answer: {error}", was_sent=may_have_been_sent) from error
            if HTTPStatus.OK <= answer.status < HTTPStatus.MULTIPLE_CHOICES:
                return answer
            refused = refusal(answer)
            if refused.code.startswith("bearer_") and not is_renewed:
                is_renewed = True
                self.bearer.refuse(bearer)
                continue
            if _is_for_later(refused, repeat, was_repeated=may_have_been_sent) and patience.wait(
                refused.detail, retry_after_s=refused.retry_after_s
            ):
                continue
            raise refused

    def _credentials(self, bearer: str) -> dict[str, str]:
        return {
            "Authorization": f"Bearer {bearer}",
            "X-Management-Token": self._settings.management_token,
            "Accept": "application/json",
            "User-Agent": "sgm-client",
        }


def refusal(answer: Answer) -> ApiError:
    """The error that an answer is, in the API's words where it has any."""
    try:
        body = answer.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        body = {}
    errors = body.get("errors")
    detail = body.get("detail")
    kind = kind_of_status(answer.status)
    return kind(
        detail if isinstance(detail, str) else f"The answer is {answer.status}, and not of this API.",
        status=answer.status,
        code=str(body.get("code", "")),
        errors={str(name): [str(text) for text in texts] for name, texts in errors.items()}
        if isinstance(errors, dict) and all(isinstance(texts, list) for texts in errors.values())
        else None,
        request_id=str(body.get("request_id") or answer.headers.get("x-request-id", "")),
        retry_after_s=retry_after(answer),
    )


def _is_for_later(error: ApiError, repeat: Repeat, *, was_repeated: bool) -> bool:
    if error.status == HTTPStatus.TOO_MANY_REQUESTS:
        return True
    if repeat is Repeat.KEYED and error.code == "idempotency_in_progress":
        # Ours, whose answer was lost: the key is drawn for this request alone.
        return was_repeated
    if repeat in (Repeat.SAFE, Repeat.KEYED):
        return error.status in _AGAIN
    return (
        repeat is Repeat.REPLACES
        and error.status == HTTPStatus.SERVICE_UNAVAILABLE
        and error.retry_after_s is not None
    )


def json_of(answer: Answer) -> Any:
    try:
        return answer.json()
    except ValueError as error:
        raise AnswerInvalid("The answer is not JSON: is this the address of the API?") from error


def _refuse_header(what: str, text: str) -> None:
    if not (text.isascii() and text.isprintable()):
        raise ArgumentInvalid(f"Only visible characters of ASCII can stand in {what}.")


def _next(link: str) -> Query | None:
    for address, rel in re.findall(r'<([^>]*)>\s*;\s*rel="?(\w+)"?', link):
        if rel == "next":
            query: dict[str, list[str]] = {}
            for name, value in parse_qsl(urlsplit(address).query, keep_blank_values=True):
                query.setdefault(name, []).append(value)
            return query
    return None


def present(query: Mapping[str, str | Sequence[str] | None]) -> dict[str, str | Sequence[str]]:
    return {name: value for name, value in query.items() if value is not None}


def part(text: str) -> str:
    """A part of a path, whatever it holds: no id or name leads to another path."""
    quoted = quote(text, safe="", errors="replace")
    return quoted.replace(".", "%2E") if quoted in (".", "..") else quoted
