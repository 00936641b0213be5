"""ping, version, and the answer to a path which is none of ours."""

from __future__ import annotations

import hashlib
from typing import Any

from django.conf import settings
from django.db import connection
from django.db.migrations.recorder import MigrationRecorder
from django.http import HttpRequest, HttpResponse
from django.views import defaults
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from smartgrid.api.exceptions import django_error
from smartgrid.api.schema import operation
from smartgrid.errors import NotFound


class PingOutput(serializers.Serializer[Any]):
    ping = serializers.CharField()


class VersionOutput(serializers.Serializer[Any]):
    alembic_version = serializers.CharField(help_text="Changes with the database's tables.")
    git_version = serializers.CharField()


class PingApi(APIView):
    @operation(
        name="ping",
        summary="Check API health",
        description="Answers when both credentials hold.",
        tag="Health and version",
        answer=PingOutput,
    )
    def get(self, _request: Request) -> Response:
        return Response({"ping": "pong!"})


class VersionApi(APIView):
    @operation(
        name="version_get",
        summary="Get API version",
        description="Which version runs, and which tables the database has.",
        tag="Health and version",
        answer=VersionOutput,
    )
    def get(self, _request: Request) -> Response:
        return Response({"alembic_version": schema_version(), "git_version": settings.SGM_GIT_VERSION})


class UnknownPathApi(APIView):
    """Whatever the method: without credentials 401 like any path, with them 404."""

    # No operation of anybody's.
    schema = None

    def initial(self, request: Request, *args: object, **kwargs: object) -> None:
        super().initial(request, *args, **kwargs)
        raise NotFound("No such path.")


def schema_version() -> str:
    """Twelve hexadecimal digits which change whenever a migration is applied or taken back."""
    applied = sorted(MigrationRecorder(connection).applied_migrations())
    return hashlib.sha256(repr(applied).encode()).hexdigest()[:12]


def _is_api(request: HttpRequest) -> bool:
    return request.path == "/v1" or request.path.startswith("/v1/")


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    if _is_api(request):
        return django_error(request, status_code=400, detail="The request is malformed.", code="malformed")
    return defaults.bad_request(request, exception)


def forbidden(request: HttpRequest, exception: Exception) -> HttpResponse:
    if _is_api(request):
        return django_error(request, status_code=403, detail="Not allowed.", code="permission_denied")
    return defaults.permission_denied(request, exception)


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    if _is_api(request):
        return django_error(request, status_code=404, detail="No such path.", code="not_found")
    return defaults.page_not_found(request, exception)


def server_error(request: HttpRequest) -> HttpResponse:
    if _is_api(request):
        return django_error(request, status_code=500)
    return defaults.server_error(request)
