"""Domain error -> status and body: the one place which knows both.

Every error of /v1 has one shape: `{"detail", "code", "errors": {field: [..]}, "request_id"}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import structlog
from django.core.exceptions import PermissionDenied, SuspiciousOperation
from django.db import IntegrityError, InterfaceError, OperationalError
from django.http import Http404, HttpRequest, JsonResponse
from rest_framework import exceptions as drf, status
from rest_framework.response import Response
from rest_framework.views import set_rollback

from smartgrid.errors import (
    Conflict,
    Forbidden,
    InProgress,
    Invalid,
    NotFound,
    SgmError,
    Throttled,
    Unavailable,
)
from smartgrid.middleware import request_id_of
from smartgrid.rates import retry_after

log = structlog.stdlib.get_logger(__name__)

# The first which fits counts: an error has the status of its nearest ancestor here.
STATUSES: tuple[tuple[type[SgmError], int], ...] = (
    (NotFound, status.HTTP_404_NOT_FOUND),
    (Invalid, status.HTTP_400_BAD_REQUEST),
    (Conflict, status.HTTP_409_CONFLICT),
    (Forbidden, status.HTTP_403_FORBIDDEN),
    (Throttled, status.HTTP_429_TOO_MANY_REQUESTS),
    (Unavailable, status.HTTP_503_SERVICE_UNAVAILABLE),
)
_INTERNAL = "Something is wrong on our side; the request id helps us to find it."
_GONE = "Something that this is about was changed or deleted meanwhile."
_CODES = {"parse_error": "malformed", "method_not_allowed": "method_not_allowed"}
NON_FIELD = "non_field_errors"


def error_body(
    *, detail: str, code: str, request: HttpRequest, errors: Mapping[str, list[str]] | None = None
) -> dict[str, Any]:
    return {
        "detail": detail,
        "code": code,
        "errors": dict(errors or {}),
        "request_id": request_id_of(request),
    }


def exception_handler(error: Exception, context: dict[str, Any]) -> Response:
    """DRF's hook: any exception of a view becomes an answer in the one shape."""
    set_rollback()
    request: HttpRequest = context["request"]
    if isinstance(error, SgmError):
        return _domain(error, request)
    if isinstance(error, Http404):
        error = drf.NotFound()
    elif isinstance(error, PermissionDenied):
        error = drf.PermissionDenied()
    elif isinstance(error, SuspiciousOperation):
        # Of Django's own limits: more than a thousand parameters, say.
        error = drf.ParseError("The request is malformed.")
    if isinstance(error, drf.APIException):
        return _framework(error, request)
    if isinstance(error, OperationalError | InterfaceError):
        log.error("database_unavailable", error=str(error))
        body = error_body(
            detail="The database does not answer.", code="database_unavailable", request=request
        )
        return Response(body, status=status.HTTP_503_SERVICE_UNAVAILABLE, headers={"Retry-After": "1"})
    if isinstance(error, IntegrityError) and _is_about_a_reference(error):
        # References are looked at when a transaction is committed: what it refers to has gone meanwhile.
        log.warning("refused_at_commit", path=request.path, error=str(error))
        body = error_body(detail=_GONE, code="conflict", request=request)
        return Response(body, status=status.HTTP_409_CONFLICT)
    log.error("unhandled_error", path=request.path, exc_info=error)
    body = error_body(detail=_INTERNAL, code="internal_error", request=request)
    return Response(body, status=status.HTTP_500_INTERNAL_SERVER_ERROR)


def _is_about_a_reference(error: IntegrityError) -> bool:
    # PostgreSQL's class of error (Appendix A of its manual), and SQLite's words.
    return getattr(error.__cause__, "sqlstate", "") == "23503" or "FOREIGN KEY" in str(error)


def status_of(error: Exception) -> int | None:
    """The HTTP status that a refusal has; None for what is no refusal of ours."""
    return next((code for kind, code in STATUSES if isinstance(error, kind)), None)


def django_error(request: HttpRequest, *, status_code: int, detail: str = "", code: str = "") -> JsonResponse:
    """The same shape for what fails before or beside DRF's views."""
    body = error_body(detail=detail or _INTERNAL, code=code or "internal_error", request=request)
    return JsonResponse(body, status=status_code)


def _domain(error: SgmError, request: HttpRequest) -> Response:
    status_code = status_of(error)
    if status_code is None:
        log.error("unmapped_error", path=request.path, exc_info=error)
        body = error_body(detail=_INTERNAL, code="internal_error", request=request)
        return Response(body, status=status.HTTP_500_INTERNAL_SERVER_ERROR)
    headers = {}
    if isinstance(error, InProgress | Throttled | Unavailable):
        headers["Retry-After"] = retry_after(error.retry_after_s)
    body = error_body(detail=error.detail, code=error.code, errors=error.errors, request=request)
    return Response(body, status=status_code, headers=headers)


def _framework(error: drf.APIException, request: HttpRequest) -> Response:
    headers: dict[str, str] = {}
    if challenge := getattr(error, "auth_header", None):
        headers["WWW-Authenticate"] = challenge
    if wait := getattr(error, "wait", None):
        headers["Retry-After"] = retry_after(wait)
    if isinstance(error, drf.ValidationError):
        errors = _by_field(error.detail)
        field, texts = next(iter(errors.items()), (NON_FIELD, ["The request is not valid."]))
        detail = texts[0] if field == NON_FIELD else f"{field}: {texts[0]}"
        code = "invalid"
    else:
        errors, detail = {}, _text(error.detail)
        codes = error.get_codes()
        code = codes if isinstance(codes, str) else error.default_code
        code = _CODES.get(code, code)
    body = error_body(detail=detail, code=code, errors=errors, request=request)
    return Response(body, status=error.status_code, headers=headers)


def _text(detail: Any) -> str:
    """DRF's detail as one sentence."""
    if isinstance(detail, dict):
        return _text(next(iter(detail.values()), ""))
    if isinstance(detail, list):
        return _text(detail[0]) if detail else ""
    return str(detail)


def _by_field(detail: Any, path: str = "") -> dict[str, list[str]]:
    """DRF's nested detail as flat fields: `{"a": {"b": [..]}}` -> `{"a.b": [..]}`."""
    if isinstance(detail, Mapping):
        found: dict[str, list[str]] = {}
        for key, value in detail.items():
            name = path if key == NON_FIELD and path else f"{path}.{key}" if path else str(key)
            found.update(_by_field(value, name))
        return found
    if isinstance(detail, list):
        if any(isinstance(item, Mapping | list) for item in detail):
            found = {}
            for position, item in enumerate(detail):
                found.update(_by_field(item, f"{path}.{position}" if path else str(position)))
            return found
        return {path or NON_FIELD: [str(item) for item in detail]} if detail else {}
    return {path or NON_FIELD: [str(detail)]}
