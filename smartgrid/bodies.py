"""Bodies of requests: of a known length, of bounded size, no more on their way than threads can be spared.

The server hands a body on as it comes, and knows no time within which it has to come (granian's issue 728): a
client that sends a byte a second, or is gone, keeps a thread for as long as its connection lasts. Nor can a
read be given up: a process that answers while another thread reads the same body stands still until it comes.
What is left is to bound how many threads may wait. In production a proxy in front takes bodies in whole
(docs/operations.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from threading import BoundedSemaphore
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse

from smartgrid.api.exceptions import django_error

READS_BODY = frozenset({"POST", "PUT", "PATCH", "DELETE"})
# Of the 200 threads of a process. The API reads a body only when both credentials have opened it; anybody may
# send one to the console, the token endpoint and the enrolment of nodes.
API_BODIES_AT_ONCE = 100
OTHER_BODIES_AT_ONCE = 30


class BodiesBusy(OSError):  # noqa: N818 - states the fault; Django takes OSError for a body that breaks off
    """As many threads wait for bodies as may."""


class BoundedBody:
    """What a server has of a body, read by no more threads at once than have a place."""

    def __init__(self, body: Any, places: BoundedSemaphore) -> None:
        self._body = body
        self._places = places

    def read(self, size: int = -1) -> bytes:
        return self._in_a_place(self._body.read, size)

    def readline(self, size: int = -1) -> bytes:
        return self._in_a_place(self._body.readline, size)

    def _in_a_place(self, read: Callable[[int], bytes], size: int) -> bytes:
        if not self._places.acquire(blocking=False):
            raise BodiesBusy("too many bodies are on their way")
        try:
            return read(size)
        finally:
            self._places.release()


Application = Callable[[dict[str, Any], Any], Iterable[bytes]]


def bodies_bounded(
    application: Application, *, api: int = API_BODIES_AT_ONCE, others: int = OTHER_BODIES_AT_ONCE
) -> Application:
    """A WSGI application of whose threads at most so many wait for bodies at once, here and there."""
    api_places, other_places = BoundedSemaphore(api), BoundedSemaphore(others)

    def bounded(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ.get("CONTENT_LENGTH") not in {None, "", "0"}:
            places = api_places if environ["PATH_INFO"].startswith("/v1/") else other_places
            environ["wsgi.input"] = BoundedBody(environ["wsgi.input"], places)
        return application(environ, start_response)

    return bounded


class BodyLimitMiddleware:
    """Refuse bodies by what their headers say, before anything of them is read.

    413 for those that are too large; 411 for those that do not say how large they are (RFC 9110, section
    15.5.12): they would be taken for empty, and an empty body may ask for more than the one that was meant.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        if request.method in READS_BODY and (refusal := _refusal(request)) is not None:
            return refusal
        return self._get_response(request)


def _refusal(request: HttpRequest) -> HttpResponse | None:
    declared = request.META.get("CONTENT_LENGTH") or ""
    if not declared and "HTTP_TRANSFER_ENCODING" in request.META:
        detail = "The body does not say how long it is: send Content-Length."
        return django_error(request, status_code=411, detail=detail, code="length_required")
    is_console = request.path.startswith("/admin/")
    limit = settings.SGM_UPLOAD_MAX_BYTES if is_console else settings.DATA_UPLOAD_MAX_MEMORY_SIZE
    if declared.isdecimal() and int(declared[:20]) > limit:
        detail = f"The body is larger than the {limit:,} bytes that are read here."
        return django_error(request, status_code=413, detail=detail, code="payload_too_large")
    return None
