"""The floor's web part: a view of the same framework and server that validates a body and does nothing."""

from __future__ import annotations

import os
from typing import Any

os.environ["DJANGO_SETTINGS_MODULE"] = "bench.noop_settings"

from django.core.wsgi import get_wsgi_application
from django.urls import path
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView


class Input(serializers.Serializer[Any]):
    value = serializers.FloatField()
    category = serializers.CharField()


class NoopApi(APIView):
    def get(self, _request: Request) -> Response:
        return Response({"status": "success"})

    def put(self, request: Request) -> Response:
        wanted = Input(data=request.data)
        wanted.is_valid(raise_exception=True)
        return Response({"status": "success"})


urlpatterns = [
    path("noop", NoopApi.as_view()),
    # Where the product's proxy looks whether a process lives, and a path that it has in its lane for reading.
    path("healthz", NoopApi.as_view()),
    path("v1/ping", NoopApi.as_view()),
]

application = get_wsgi_application()
