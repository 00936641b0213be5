"""/v1/events: who may listen to what; and web passing the streams on where no proxy does."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from urllib.parse import urlencode
from uuid import UUID

import structlog
from django.conf import settings
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from drf_spectacular.utils import OpenApiParameter
from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request
from rest_framework.views import APIView

from sites_app.selectors import site_get, sites_visible_to
from smartgrid.api.authentication import BEARER_EXPIRES, LEEWAY_S
from smartgrid.api.principal import Principal, principal_of
from smartgrid.api.schema import operation
from smartgrid.errors import EventsUnavailable, Invalid
from smartgrid.event_streams.hub import Terms
from smartgrid.events import Kind

log = structlog.stdlib.get_logger(__name__)

PATH = "/v1/events"
CONTENT_TYPE = "text/event-stream"
# Longer than the comments that keep a stream open: one from which nothing comes is dead.
SILENT_S = 45.0
CONNECT_S = 2.0
PIECE = 64 * 1024
ONE_KIND = "|".join(Kind)
KINDS = ", ".join(f"`{kind}`" for kind in Kind)
_PASSED_ON = ("Authorization", "X-Management-Token", "Last-Event-ID", "Host")
_ASKED = ("types", "site_id", "last_event_id")
_PASSED_BACK = ("Retry-After", "WWW-Authenticate", "Cache-Control", "X-Accel-Buffering")
_HEADERS = {"Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no"}


class _AnyAccept(BaseContentNegotiation):
    """Whatever a client says it accepts: it asks for a stream, and a refusal is JSON all the same."""

    def select_parser(  # type: ignore[override]
        self,
        request: Request,  # noqa: ARG002 - DRF's signature
        parsers: list[object],
    ) -> object | None:
        return next(iter(parsers), None)

    def select_renderer(  # type: ignore[override]
        self,
        request: Request,  # noqa: ARG002
        renderers: list[BaseRenderer],
        format_suffix: str | None = None,  # noqa: ARG002
    ) -> tuple[BaseRenderer, str]:
        return renderers[0], renderers[0].media_type


class Opening(HttpResponse):
    """A stream may begin, by these terms; the events' process makes one of it."""

    def __init__(self, terms: Terms) -> None:
        super().__init__(content_type=CONTENT_TYPE, headers=_HEADERS)
        self.terms = terms


class EventsApi(APIView):
    """In web: refuses what the events' process would refuse, and passes the rest on to it."""

    content_negotiation_class = _AnyAccept
    # No HEAD: it would open a stream to say nothing.
    http_method_names = ("get", "options")

    @operation(
        name="events_stream",
        summary="Listen to what happens",
        description="Server-sent events of the sites that the token opens, in order: `control_log`, a line "
        "as the logs show it; `alarm`, one that was raised, acknowledged or cleared; `device`, a value "
        "that a device was seen to hold; `loop`, a closed loop that "
        "came to stand otherwise; `node`, one that came, went, fell ill or is well again. `mark` is only a "
        "place to resume from. After an interruption send the id of the last event as `Last-Event-ID`: what "
        "was missed comes first. Where that is not there any "
        "longer, or something was lost, `reset` says so: read the lists again. An event may come twice. "
        "Comments keep the connection open, and the stream ends with the bearer token.",
        tag="Events",
        answer={"type": "string"},
        media_type=CONTENT_TYPE,
        query=[
            OpenApiParameter(
                "types",
                {"type": "string", "pattern": f"^({ONE_KIND})(,({ONE_KIND}))*$"},
                description=f"Only these, between commas: {KINDS}.",
            ),
            OpenApiParameter("site_id", UUID, description="Only of this site."),
            OpenApiParameter(
                "last_event_id", str, description="As the header, for clients that cannot set it at first."
            ),
        ],
        headers={"Last-Event-ID": "The id of the last event that was received."},
        errors=(400, 404),
    )
    def get(self, request: Request) -> HttpResponseBase:
        principal = principal_of(request)
        kinds_asked(request)
        site_asked(request, principal)
        return events_relay(request, path=PATH, passed_on=_PASSED_ON)


class EventsOpenApi(EventsApi):
    """In the events' process: settles the terms of a stream."""

    def get(self, request: Request) -> HttpResponseBase:
        principal = principal_of(request)
        kinds, site_id = kinds_asked(request), site_asked(request, principal)
        sites: frozenset[str] | None = None
        if site_id is not None:
            sites = frozenset([str(site_id)])
        elif not principal.is_root:
            sites = frozenset(map(str, sites_visible_to(principal).order_by().values_list("pk", flat=True)))
        terms = Terms(
            owner=str(principal.token_id or f"root:{principal.client_id}"),
            token_id=principal.token_id,
            kinds=kinds,
            site_id=None if site_id is None else str(site_id),
            sites=sites,
            # As long as the door itself would open for it.
            expires_at=float(request.META[BEARER_EXPIRES]) + LEEWAY_S,
            last_event_id=request.headers.get("Last-Event-ID")
            or request.query_params.get("last_event_id", ""),
        )
        return Opening(terms)


def kinds_asked(request: HttpRequest | Request) -> frozenset[str]:
    """The kinds of events that `types` names, all of them where it is not given; `Invalid` for others."""
    asked = request.GET.get("types")
    if asked is None:
        return frozenset(Kind)
    kinds = frozenset(asked.split(","))
    if not kinds <= frozenset(Kind):
        raise Invalid.field("types", f"one or more of {', '.join(Kind)} are expected, between commas")
    return kinds


def site_asked(request: HttpRequest | Request, principal: Principal) -> UUID | None:
    """The one site that `site_id` names, if any; `NotFound` where this principal may not see it."""
    asked = request.GET.get("site_id")
    if asked is None:
        return None
    try:
        site_id = UUID(asked)
    except ValueError:
        raise Invalid.field("site_id", "a UUID is expected") from None
    return site_get(principal=principal, site_id=site_id).pk


# --- passing on -------------------------------------------------------------------------------------------


class _Relays:
    """How many threads of this process pass a stream on."""

    def __init__(self) -> None:
        self._changing = threading.Lock()
        self.count = 0

    def take(self) -> bool:
        with self._changing:
            if self.count >= settings.SGM_EVENTS_RELAYS:
                return False
            self.count += 1
            return True

    def give_back(self) -> None:
        with self._changing:
            self.count -= 1


relays = _Relays()


class _Pieces:
    """The pieces of a stream as they come; ends with it, or with whoever reads it."""

    def __init__(self, connection: http.client.HTTPConnection, answer: http.client.HTTPResponse) -> None:
        self._connection = connection
        self._answer = answer
        self._closing = threading.Lock()
        self._is_open = True

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            piece = self._answer.read1(PIECE)
        except (OSError, http.client.HTTPException, ValueError) as error:
            # The events' process is gone, or we are closed: the client connects again.
            log.info("relay_ended", error=str(error))
            piece = b""
        if not piece:
            self.close()
            raise StopIteration
        return piece

    def close(self) -> None:
        with self._closing:
            if not self._is_open:
                return
            self._is_open = False
        relays.give_back()
        self._connection.close()
        self._answer.close()

    def __del__(self) -> None:
        # A server that forgets to close what it no longer reads must not cost a place.
        with suppress(Exception):
            self.close()


def events_relay(request: HttpRequest | Request, *, path: str, passed_on: Sequence[str]) -> HttpResponseBase:
    """The stream of the events' process at this path, asked for with these headers of the request.

    `EventsUnavailable` where there is none to ask, or no thread to pass it on.
    """
    if not settings.SGM_EVENTS_HOST:
        raise EventsUnavailable(
            "Events are not served at this address: the operator sends /v1/events to `manage.py run_events`, "
            "or names that in SGM_EVENTS_URL."
        )
    if not relays.take():
        raise EventsUnavailable("This server passes on as many streams as it may.")
    connection = http.client.HTTPConnection(
        settings.SGM_EVENTS_HOST, settings.SGM_EVENTS_PORT, timeout=CONNECT_S
    )
    try:
        answer = _ask(connection, request, path=path, passed_on=passed_on)
    except (OSError, http.client.HTTPException) as error:
        relays.give_back()
        connection.close()
        log.warning("events_process_unreachable", error=str(error))
        raise EventsUnavailable("The process that tells events does not answer.") from error
    pieces = _Pieces(connection, answer)
    headers = {name: value for name in _PASSED_BACK if (value := answer.headers.get(name))}
    kind = answer.headers.get("Content-Type", "application/json")
    if answer.status == http.client.OK:
        return StreamingHttpResponse(pieces, content_type=kind, headers=headers)
    content = b"".join(pieces)
    return HttpResponse(content, status=answer.status, content_type=kind, headers=headers)


def _ask(
    connection: http.client.HTTPConnection,
    request: HttpRequest | Request,
    *,
    path: str,
    passed_on: Sequence[str],
) -> http.client.HTTPResponse:
    headers = {name: value for name in passed_on if (value := request.headers.get(name))}
    headers["X-Request-ID"] = str(request.META.get("sgm.request_id", ""))
    connection.connect()
    connection.sock.settimeout(SILENT_S)
    # Spelt anew: what a client may write into an address, the next program may not let through.
    query = {name: value for name in _ASKED if (value := request.GET.get(name)) is not None}
    connection.request("GET", f"{path}?{urlencode(query)}", headers=headers)
    return connection.getresponse()
