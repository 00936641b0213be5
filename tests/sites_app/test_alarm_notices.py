"""Notices of alarms: by e-mail and webhook, at least once, signed, never in a flood."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from django.core import mail
from django.utils import timezone

from sites_app.alarm_notices import ATTEMPTS, deliveries_send
from sites_app.alarm_routes import RouteFields, alarm_route_create, alarm_route_secret
from sites_app.alarms import alarm_acknowledge, alarm_clear, alarm_raise
from sites_app.models import AlarmDelivery
from sites_app.webhooks import SIGNATURE_HEADER
from smartgrid.errors import Invalid
from tests.factories import node_make, site_make

pytestmark = pytest.mark.django_db


@dataclass
class Receiver:
    url: str = ""
    answers: list[int] = field(default_factory=list)
    got: list[tuple[str, bytes, str]] = field(default_factory=list)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    found = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            found.got.append((self.path, body, self.headers[SIGNATURE_HEADER]))
            self.send_response(found.answers.pop(0) if found.answers else 204)
            self.send_header("Location", "/elsewhere")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    found.url = f"http://127.0.0.1:{server.server_port}/alarms"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield found
    server.shutdown()
    server.server_close()
    thread.join()


def route(**fields):
    given = {
        "name": "crew",
        "kind": "email",
        "target": "crew@example.com",
        "least_severity": "error",
        "sites": [],
        "enabled": True,
        **fields,
    }
    return alarm_route_create(RouteFields(**given))


def hook(receiver, settings, **fields):
    settings.SGM_ALARM_WEBHOOKS_PRIVATE = True
    return route(kind="webhook", target=receiver.url, **fields)


def test_raised_acknowledged_and_cleared_are_mailed():
    route()
    node = node_make()
    alarm = alarm_raise(code="node_silent", site=node.site, node=node, detail="Offline.\nX: y")
    alarm_acknowledge(alarm=alarm, by="ann", note="on my way")
    alarm_clear(code="node_silent", site=node.site, node=node)
    assert deliveries_send(now=timezone.now()) == (3, 0)
    assert [message.subject.split(":")[0] for message in mail.outbox] == [
        "[SGM] Raised",
        "[SGM] Acknowledged",
        "[SGM] Cleared",
    ]
    assert deliveries_send(now=timezone.now()) == (0, 0)


def test_route_is_told_only_of_its_sites_and_of_what_is_severe_enough():
    site, other = site_make(), site_make()
    route(sites=[site])
    alarm_raise(code="wear", site=site, detail="")
    alarm_raise(code="store_failed", site=other, detail="")
    route(name="off", enabled=False)
    assert not AlarmDelivery.objects.exists()
    alarm_raise(code="store_failed", site=site, detail="")
    assert AlarmDelivery.objects.count() == 1


def test_flood_becomes_a_digest_and_waits_for_the_next_minute(settings):
    settings.SGM_ALARM_MESSAGES_PER_MINUTE = 3
    route()
    site, now = site_make(), timezone.now()
    for number in range(40):
        alarm_raise(code="store_failed", site=site, subject=f"S{number}", detail="")
    deliveries_send(now=now + timedelta(seconds=1))
    assert len(mail.outbox) == 3
    assert mail.outbox[-1].subject == "[SGM] 38 notices of alarms"
    alarm_raise(code="store_failed", site=site, subject="late", detail="")
    deliveries_send(now=now + timedelta(seconds=30))
    assert len(mail.outbox) == 3
    deliveries_send(now=now + timedelta(seconds=62))
    assert len(mail.outbox) == 4


def test_webhook_is_signed_over_time_and_body(receiver, settings):
    made = hook(receiver, settings)
    alarm_raise(code="store_failed", site=site_make(), detail="full")
    now = timezone.now()
    assert deliveries_send(now=now) == (1, 0)
    ((path, body, signed),) = receiver.got
    at = int(now.timestamp())
    secret = alarm_route_secret(made)
    expected = hmac.new(secret.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    assert (path, signed) == ("/alarms", f"t={at},v1={expected}")
    assert json.loads(body)["notices"][0]["code"] == "store_failed"
    assert secret not in made.secret_encrypted


@pytest.mark.parametrize("answer", [302, 500])
def test_what_was_not_taken_is_sent_again_later_and_redirects_are_not_followed(receiver, settings, answer):
    hook(receiver, settings)
    receiver.answers = [answer]
    alarm_raise(code="store_failed", site=site_make(), detail="full")
    now = timezone.now()
    assert deliveries_send(now=now) == (0, 1)
    assert deliveries_send(now=now + timedelta(seconds=5)) == (0, 0)
    row = AlarmDelivery.objects.get()
    assert (row.state, row.attempts) == ("queued", 1)
    assert str(answer) in row.last_error
    assert deliveries_send(now=now + timedelta(seconds=31)) == (1, 0)
    assert [path for path, _, _ in receiver.got] == ["/alarms", "/alarms"]


def test_given_up_after_the_last_attempt():
    site = site_make()
    made = route()
    made.kind, made.target = "webhook", "https://192.0.2.1/"
    made.save()
    alarm_raise(code="store_failed", site=site, detail="")
    AlarmDelivery.objects.update(attempts=ATTEMPTS - 1)
    deliveries_send(now=timezone.now())
    row = AlarmDelivery.objects.get()
    assert row.state == "failed"
    assert "private address" in row.last_error


def test_dead_route_does_not_keep_others_from_being_told(receiver, settings):
    settings.SGM_ALARM_WEBHOOKS_PRIVATE = True
    route(name="a dead one", kind="webhook", target="http://127.0.0.1:1/")
    route(name="mail")
    alarm_raise(code="store_failed", site=site_make(), detail="")
    assert deliveries_send(now=timezone.now()) == (1, 1)
    assert len(mail.outbox) == 1


@pytest.mark.parametrize(
    "target", ["nobody", "https://", "ftp://a.example/", "http://a.example/", "https://u:p@a/"]
)
@pytest.mark.parametrize("kind", ["email", "webhook"])
def test_target_that_leads_nowhere_is_refused(kind, target):
    with pytest.raises(Invalid):
        route(kind=kind, target=target)
