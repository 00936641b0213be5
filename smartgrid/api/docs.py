"""The API's description for programs, and as a page; for everybody, since they tell of nobody's plant."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache

from django.conf import settings
from django.http import HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import render
from django.urls import reverse
from django.utils.cache import get_conditional_response
from drf_spectacular.generators import SchemaGenerator
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.views import APIView

# Swagger UI draws its icons as data; nothing else comes from elsewhere than here, nor from within the page.
CONTENT_POLICY = (
    "default-src 'self'; img-src 'self' data:; object-src 'none'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True, slots=True)
class Rendered:
    body: bytes
    etag: str


def description() -> Rendered:
    """The description as JSON: drawn at the first request, and the same as long as the process lives."""
    return _rendered(has_issuer=bool(settings.SGM_ISSUER_KEY_FILE))


@lru_cache(maxsize=2)
def _rendered(*, has_issuer: bool) -> Rendered:  # noqa: ARG001 - what the description depends on
    told = SchemaGenerator().get_schema(request=None, public=True)  # type: ignore[no-untyped-call]
    body = json.dumps(told, ensure_ascii=False, separators=(",", ":")).encode()
    return Rendered(body, f'"{hashlib.sha256(body).hexdigest()[:32]}"')


class OpenToAll(APIView):
    """A page about the API and none of its operations: without credentials, and not in the description."""

    schema = None
    authentication_classes = ()
    permission_classes = (AllowAny,)
    # It costs as much as a file; and throttles count callers, of whom nothing is known here.
    throttle_classes = ()


class DescriptionApi(OpenToAll):
    def get(self, request: Request) -> HttpResponseBase:
        told = description()
        unchanged = get_conditional_response(request, etag=told.etag)
        answer = unchanged or HttpResponse(told.body, content_type="application/json")
        answer["ETag"] = told.etag
        # Kept by whoever likes, and asked for again each time: an upgrade shows at once.
        answer["Cache-Control"] = "no-cache"
        return answer


class DocsApi(OpenToAll):
    def get(self, request: Request) -> HttpResponse:
        page = render(request, "smartgrid/docs.html", {"description": reverse("api-description")})
        page["Content-Security-Policy"] = CONTENT_POLICY
        page["Cache-Control"] = "no-cache"
        return page
