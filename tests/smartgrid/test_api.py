"""What holds for every path of /v1: the error's shape, the request id, unknown paths, bodies."""

from __future__ import annotations

import pytest
from django.db import IntegrityError, OperationalError, connection
from django.db.migrations.recorder import MigrationRecorder
from django.test import Client, override_settings
from django.urls import include, path, re_path
from rest_framework import serializers
from rest_framework.response import Response
from rest_framework.test import APIClient
from rest_framework.views import APIView

from smartgrid.errors import Conflict, DispatchUnavailable, Forbidden, Invalid, NotFound, SgmError
from tests.factories import ROOT, client_of

SHAPE = ["detail", "code", "errors", "request_id"]
ERRORS = {
    "invalid": Invalid("value: too high", errors={"value": ["too high"]}),
    "not-found": NotFound("No such device."),
    "conflict": Conflict("There is such a device already."),
    "forbidden": Forbidden("Only for root."),
    "dispatch": DispatchUnavailable("The command was not sent."),
    "new-kind": SgmError("Nobody mapped this."),
    "database": OperationalError("server closed the connection"),
    "gone": IntegrityError("FOREIGN KEY constraint failed"),
    "broken": IntegrityError("NOT NULL constraint failed: secret detail"),
    "bug": ZeroDivisionError("secret detail"),
}


class FailingApi(APIView):
    def get(self, _request, kind):
        raise ERRORS[kind]


class Input(serializers.Serializer[dict[str, object]]):
    value = serializers.FloatField()
    tags = serializers.ListField(child=serializers.CharField())


class EchoApi(APIView):
    def post(self, request):
        serializer = Input(data=request.data)
        serializer.is_valid(raise_exception=True)
        return Response(serializer.validated_data)


urlpatterns = [
    path("v1/failing/<str:kind>", FailingApi.as_view()),
    path("v1/echo", EchoApi.as_view()),
    re_path("", include("smartgrid.urls")),
]
handler404 = "smartgrid.api.views.not_found"
handler500 = "smartgrid.api.views.server_error"


@pytest.fixture
def client():
    with override_settings(ROOT_URLCONF=__name__):
        yield client_of(ROOT)


def test_ping_answers_pong():
    assert client_of(ROOT).get("/v1/ping").content == b'{"ping":"pong!"}'


@pytest.mark.django_db
def test_version_changes_with_the_applied_migrations():
    before = client_of(ROOT).get("/v1/version").json()
    assert list(before) == ["alembic_version", "git_version"]
    assert before["git_version"] == "v1.2.3"
    assert len(before["alembic_version"]) == 12
    assert int(before["alembic_version"], 16) >= 0
    MigrationRecorder(connection).record_applied("sites_app", "9999_later")
    assert client_of(ROOT).get("/v1/version").json()["alembic_version"] != before["alembic_version"]


@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [
        ("invalid", 400, "invalid"),
        ("not-found", 404, "not_found"),
        ("conflict", 409, "conflict"),
        ("forbidden", 403, "forbidden"),
        ("dispatch", 503, "dispatch_unavailable"),
        ("new-kind", 500, "internal_error"),
        ("database", 503, "database_unavailable"),
        ("gone", 409, "conflict"),
        ("broken", 500, "internal_error"),
        ("bug", 500, "internal_error"),
    ],
)
def test_every_error_has_its_status_and_the_one_shape(client, kind, status, code):
    response = client.get(f"/v1/failing/{kind}")
    assert response.status_code == status
    body = response.json()
    assert list(body) == SHAPE
    assert body["code"] == code
    assert body["request_id"] == response["X-Request-ID"]


def test_domain_error_names_its_fields(client):
    assert client.get("/v1/failing/invalid").json()["errors"] == {"value": ["too high"]}


def test_unavailable_dispatch_says_when_to_try_again(client):
    assert int(client.get("/v1/failing/dispatch")["Retry-After"]) >= 1


def test_internal_error_tells_nothing_of_its_inside(client):
    assert b"secret detail" not in client.get("/v1/failing/bug").content


@pytest.mark.parametrize(
    ("body", "content_type", "status", "code"),
    [
        ("{", "application/json", 400, "malformed"),
        ("", "application/json", 400, "invalid"),
        ('{"value": NaN, "tags": []}', "application/json", 400, "malformed"),
        ('{"value": Infinity, "tags": []}', "application/json", 400, "malformed"),
        (b'{"value": "\xff"}', "application/json", 400, "malformed"),
        ("[" * 100_000, "application/json", 400, "malformed"),
        ('"' + "x" * (1024 * 1024) + '"', "application/json", 413, "payload_too_large"),
        ("value=50", "application/x-www-form-urlencoded", 415, "unsupported_media_type"),
        ("value: 50", "text/plain", 415, "unsupported_media_type"),
        ("[]", "application/json", 400, "invalid"),
        ("null", "application/json", 400, "invalid"),
    ],
)
def test_body_which_cannot_be_used_is_refused_in_the_one_shape(client, body, content_type, status, code):
    response = client.generic("POST", "/v1/echo", body, content_type=content_type)
    assert response.status_code == status
    assert list(response.json()) == SHAPE
    assert response.json()["code"] == code


def test_nested_errors_are_named_by_their_path(client):
    response = client.post("/v1/echo", {"value": "x", "tags": ["a", []]})
    assert response.status_code == 400
    assert set(response.json()["errors"]) == {"value", "tags.1"}


@pytest.mark.parametrize("query", ["format=xml", "format=json", "nonsense=1"])
def test_parameter_that_is_not_ours_changes_nothing(query):
    plain, asked = (client_of(ROOT).get(f"/v1/ping{more}") for more in ("", f"?{query}"))
    assert (asked.status_code, asked.content) == (plain.status_code, plain.content) == (200, plain.content)


def test_wrong_method_is_405_in_the_one_shape():
    response = client_of(ROOT).delete("/v1/ping")
    assert response.status_code == 405
    assert list(response.json()) == SHAPE
    assert response["Allow"]


@pytest.mark.parametrize("path", ["/v1/", "/v1/nothing", "/v1/sites/", "/v1/sites/not-a-uuid", "/v1/ping/"])
@pytest.mark.parametrize("method", ["get", "post", "put", "patch", "delete"])
@pytest.mark.parametrize("debug", [False, True])
def test_unknown_path_is_404_in_the_one_shape(settings, path, method, debug):
    settings.DEBUG = debug
    response = getattr(client_of(ROOT), method)(path)
    assert response.status_code == 404
    assert list(response.json()) == SHAPE


def test_page_outside_the_api_is_not_found_as_a_page():
    response = APIClient().get("/nothing")
    assert response.status_code == 404
    assert response["Content-Type"].startswith("text/html")


@pytest.mark.parametrize(
    "path", ["/v1/ping", "/v1/version", "/v1/sites", "/v1/devices", "/v1/nodes", "/v1/nothing"]
)
def test_nothing_below_v1_answers_without_credentials(path):
    response = APIClient().get(path)
    assert response.status_code == 401
    assert list(response.json()) == SHAPE
    assert response["WWW-Authenticate"].startswith("Bearer")


def test_sane_request_id_is_taken_and_echoed():
    assert client_of(ROOT).get("/v1/ping", HTTP_X_REQUEST_ID="abc-1.2:3")["X-Request-ID"] == "abc-1.2:3"


@pytest.mark.parametrize("offered", ["", "a b", "x" * 65, "a\nb", "<script>"])
def test_other_request_ids_are_replaced(offered):
    given = client_of(ROOT).get("/v1/ping", HTTP_X_REQUEST_ID=offered)["X-Request-ID"]
    assert given != offered
    assert len(given) == 32


def test_disallowed_host_is_400_in_the_one_shape():
    response = client_of(ROOT).get("/v1/ping", HTTP_HOST="evil.example")
    assert response.status_code == 400
    assert list(response.json()) == SHAPE


def test_answers_of_the_api_and_the_console_are_guarded_alike():
    of_api, of_console = (client_of(ROOT).get("/v1/ping").headers, Client().get("/admin/login/").headers)
    guards = ("X-Content-Type-Options", "X-Frame-Options", "Referrer-Policy", "Cross-Origin-Opener-Policy")
    assert [of_api[name] for name in guards] == [of_console[name] for name in guards]
    assert of_api["Content-Length"] == "16"


@pytest.mark.parametrize("method", ["get", "post", "put", "delete"])
def test_api_takes_no_part_in_sessions_and_forms(method):
    client = client_of(ROOT)
    client.handler.enforce_csrf_checks = True
    client.cookies["sessionid"] = "nobody's"
    answer = getattr(client, method)("/v1/ping", {"a": 1})
    assert answer.status_code == (200 if method == "get" else 405)
    assert not answer.cookies
    assert "Cookie" not in answer.headers.get("Vary", "")


@pytest.mark.parametrize(
    ("accepted", "status"),
    [
        ("*/*", 200),
        ("application/json", 200),
        ("application/json; charset=utf-8", 200),
        ("text/html, application/*;q=0.1", 200),
        ("text/html", 406),
    ],
)
def test_only_json_is_spoken(accepted, status):
    answer = client_of(ROOT).get("/v1/ping", headers={"Accept": accepted})
    assert answer.status_code == status
    assert answer.headers["Content-Type"].startswith("application/json")
