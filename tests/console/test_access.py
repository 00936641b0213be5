"""Who gets into the console, for how long, and with what besides a password."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest
import time_machine
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.test import Client
from django_otp.oath import totp
from pytest_django import Settings

from sites_app.models import RecoveryCode, SecondFactor, SiteScope
from sites_app.tokens import decrypt
from smartgrid import live, throttles
from smartgrid.console import second_factor
from smartgrid.console.roles import Role
from smartgrid.rates import Rate

pytestmark = pytest.mark.django_db

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
PASSWORD = "a long enough password"
STREAM = "/admin/live"
SITES = "/admin/sites_app/site/"


def person_make(name: str = "ada", *roles: Role, **fields):
    person = get_user_model().objects.create_user(name, password=PASSWORD, is_staff=True, **fields)
    person.groups.set(Group.objects.filter(name__in=roles or [Role.VIEWER]))
    SiteScope.objects.create(user=person, all_sites=True)
    return person


def client_of(person) -> Client:
    client = Client()
    client.force_login(person)
    return client


def log_in(client: Client, name: str = "ada", password: str = PASSWORD, **headers):
    return client.post("/admin/login/", {"username": name, "password": password}, **headers)


# --- how long ---------------------------------------------------------------------------------------------


@pytest.fixture
def short(settings: Settings) -> None:
    settings.SGM_CONSOLE_IDLE_MINUTES = 60
    settings.SGM_CONSOLE_SESSION_HOURS = 12


def test_login_ends_after_an_hour_without_a_click(short) -> None:
    with time_machine.travel(NOON, tick=False) as clock:
        client = client_of(person_make())
        clock.shift(timedelta(minutes=59))
        assert client.get(SITES).status_code == 200
        clock.shift(timedelta(minutes=59))
        assert client.get(SITES).status_code == 200
        clock.shift(timedelta(minutes=60))
        answer = client.get(SITES)

    assert answer.status_code == 302
    assert answer["Location"] == "/admin/login/?next=%2Fadmin%2Fsites_app%2Fsite%2F"


def test_login_ends_half_a_day_after_it_began_however_busy_its_person(short) -> None:
    with time_machine.travel(NOON, tick=False) as clock:
        client = client_of(person_make())
        for _ in range(23):
            clock.shift(timedelta(minutes=30))
            assert client.get(SITES).status_code == 200
        clock.shift(timedelta(minutes=30))
        assert client.get(SITES).status_code == 302


def test_page_that_looks_by_itself_keeps_nobody_logged_in(short) -> None:
    with time_machine.travel(NOON, tick=False) as clock:
        client = client_of(person_make())
        for _ in range(5):
            clock.shift(timedelta(minutes=10))
            assert client.get("/admin/", headers={"X-Requested-With": "live"}).status_code == 200
        clock.shift(timedelta(minutes=10))
        answer = client.get("/admin/", headers={"X-Requested-With": "live"})

    assert answer.status_code == 401


def test_stream_ends_with_the_login_too(short) -> None:
    with time_machine.travel(NOON, tick=False) as clock:
        client = client_of(person_make())
        clock.shift(timedelta(hours=2))

        assert client.get(STREAM).status_code == 401


def test_person_who_is_switched_off_is_out_at_once() -> None:
    person = person_make()
    client = client_of(person)
    assert client.get(SITES).status_code == 200

    get_user_model().objects.filter(pk=person.pk).update(is_active=False)

    assert client.get(SITES).status_code == 302


# --- what a browser may do --------------------------------------------------------------------------------


def test_pages_of_the_console_take_scripts_from_here_alone() -> None:
    answer = Client().get("/admin/login/")

    policy = dict(part.strip().split(" ", 1) for part in answer["Content-Security-Policy"].split(";"))
    assert policy["script-src"] == "'self' 'unsafe-eval'"
    assert policy["default-src"] == policy["form-action"] == "'self'"
    assert policy["frame-ancestors"] == policy["object-src"] == "'none'"
    assert answer["Referrer-Policy"] == "same-origin"
    assert "geolocation=()" in answer["Permissions-Policy"]
    assert "Content-Security-Policy" not in Client().get("/healthz")


def test_pages_have_no_script_that_this_policy_would_stop(client: Client) -> None:
    client.force_login(get_user_model().objects.create_superuser("root"))
    for address in ("/admin/", SITES, "/admin/auth/user/", "/admin/sites_app/managementtoken/add/"):
        page = client.get(address).content.decode()
        assert "<script>" not in page, address
        assert "onclick=" not in page, address


# --- how often --------------------------------------------------------------------------------------------


@pytest.fixture
def throttled(settings: Settings, redis_url: str):
    settings.SGM_REDIS_URL = redis_url
    settings.SGM_THROTTLE_LOGIN = Rate(count=3, period_s=3600)
    live.client.cache_clear()
    throttles.accounts_here.forget()
    yield
    live.client.cache_clear()
    throttles.accounts_here.forget()


def test_fourth_try_is_refused_also_with_the_right_password(throttled) -> None:
    person_make()
    for _ in range(3):
        assert "correct" in log_in(Client(), password="wrong").content.decode()

    answer = log_in(Client())

    assert answer.status_code == 200
    assert "Too many tries" in answer.content.decode()


def test_stranger_who_tries_a_name_does_not_lock_its_person_out(throttled) -> None:
    person_make()
    for _ in range(5):
        log_in(Client(), password="wrong", REMOTE_ADDR="192.0.2.66")

    assert log_in(Client(), REMOTE_ADDR="192.0.2.1").status_code == 302


def test_without_redis_nobody_is_locked_out(settings: Settings) -> None:
    settings.SGM_REDIS_URL = "redis://127.0.0.1:1/0"
    settings.SGM_THROTTLE_LOGIN = Rate(count=1, period_s=3600)
    live.client.cache_clear()
    person_make()
    try:
        for _ in range(3):
            log_in(Client(), password="wrong")
        assert log_in(Client()).status_code == 302
    finally:
        live.client.cache_clear()


# --- the second factor ------------------------------------------------------------------------------------


@pytest.fixture
def required(settings: Settings):
    settings.SGM_CONSOLE_SECOND_FACTOR = "required"


def now_code(person) -> str:
    """What the person's authenticator shows now."""
    return f"{totp(bytes.fromhex(decrypt(SecondFactor.objects.get(user=person).key_encrypted))):06d}"


def set_up(client: Client, person) -> list[str]:
    """The recovery codes shown when the authenticator was set up."""
    client.get("/admin/second-factor/set-up/")
    answer = client.post("/admin/second-factor/set-up/", {"code": now_code(person)})
    return re.findall(r"<li><code>([^<]+)</code>", answer.content.decode())


@pytest.fixture
def clock():
    with time_machine.travel(NOON, tick=False) as clock:
        yield clock


def test_person_without_one_is_led_to_set_it_up_and_sees_nothing_else(required, clock) -> None:
    client = client_of(person_make())

    assert client.get(SITES)["Location"].startswith("/admin/second-factor/set-up/?next=")
    assert client.get(STREAM).status_code == 403
    assert "data:image/svg+xml" in client.get("/admin/second-factor/set-up/").content.decode()


def test_first_right_code_sets_it_up_and_shows_recovery_codes_once(required, clock) -> None:
    person = person_make()
    client = client_of(person)

    codes = set_up(client, person)

    assert len(set(codes)) == 10
    assert client.get(SITES).status_code == 200
    assert codes[0] not in client.get("/admin/second-factor/").content.decode()
    assert not RecoveryCode.objects.filter(digest__in=codes).exists()


def test_key_is_encrypted_at_rest(required, clock) -> None:
    person = person_make()
    page = client_of(person).get("/admin/second-factor/set-up/").content.decode()
    shown = page.split("type the key: <code>")[1].split("<")[0]

    stored = SecondFactor.objects.get(user=person)

    assert shown == second_factor.key_text(stored)
    assert decrypt(stored.key_encrypted) not in stored.key_encrypted


def test_password_alone_is_not_enough_afterwards(required, clock) -> None:
    person = person_make()
    set_up(client_of(person), person)
    client = Client()

    answer = log_in(client)

    assert answer.status_code == 302
    assert client.get(SITES)["Location"].startswith("/admin/second-factor/verify/")
    clock.shift(timedelta(seconds=30))
    said = client.post("/admin/second-factor/verify/", {"code": now_code(person), "next": SITES})
    assert (said.status_code, said["Location"]) == (302, SITES)
    assert client.get(SITES).status_code == 200


def test_password_alone_neither_removes_the_factor_nor_sets_up_another(required, clock) -> None:
    person = person_make()
    set_up(client_of(person), person)
    thief = client_of(person)

    assert thief.post("/admin/second-factor/").status_code == 403
    assert thief.post("/admin/second-factor/recovery-codes/").status_code == 403
    assert thief.get("/admin/second-factor/set-up/").status_code == 302
    assert thief.get(SITES).status_code == 302


def test_code_is_taken_once(required, clock) -> None:
    person = person_make()
    set_up(client_of(person), person)
    clock.shift(timedelta(seconds=30))
    code = now_code(person)
    assert client_of(person).post("/admin/second-factor/verify/", {"code": code}).status_code == 302

    again = client_of(person).post("/admin/second-factor/verify/", {"code": code})

    assert "was used before" in again.content.decode()


def test_wrong_code_makes_the_next_one_wait(required, clock) -> None:
    person = person_make()
    set_up(client_of(person), person)
    clock.shift(timedelta(seconds=60))
    client = client_of(person)
    client.post("/admin/second-factor/verify/", {"code": "000000"})

    assert client.post("/admin/second-factor/verify/", {"code": now_code(person)}).status_code == 429
    clock.shift(timedelta(seconds=2))
    assert client.post("/admin/second-factor/verify/", {"code": now_code(person)}).status_code == 302


def test_recovery_code_lets_in_once(required, clock) -> None:
    person = person_make()
    codes = set_up(client_of(person), person)
    client = client_of(person)

    assert client.post("/admin/second-factor/verify/", {"code": codes[3].upper()}).status_code == 302
    assert client.get(SITES).status_code == 200
    assert (
        "not right"
        in client_of(person).post("/admin/second-factor/verify/", {"code": codes[3]}).content.decode()
    )


def test_new_recovery_codes_end_the_former_ones(required, clock) -> None:
    person = person_make()
    client = client_of(person)
    codes = set_up(client, person)

    page = client.post("/admin/second-factor/recovery-codes/").content.decode()

    assert page.count("<li><code>") == 10
    assert codes[0] not in page
    refused = client_of(person).post("/admin/second-factor/verify/", {"code": codes[0]})
    assert "not right" in refused.content.decode()


def test_reset_by_an_administrator_counts_at_once(required, clock, settings: Settings) -> None:
    person, chief = person_make(), person_make("chief", Role.ADMINISTRATOR)
    client, office = client_of(person), client_of(chief)
    set_up(client, person)
    set_up(office, chief)

    assert office.get(f"/admin/auth/user/{person.pk}/second-factor-reset/").status_code == 200
    assert SecondFactor.objects.filter(user=person).exists()
    assert office.post(f"/admin/auth/user/{person.pk}/second-factor-reset/").status_code == 302

    assert client.get(SITES)["Location"].startswith("/admin/second-factor/set-up/")


def test_nobody_but_administrators_resets_it(required, clock, settings: Settings) -> None:
    settings.SGM_CONSOLE_SECOND_FACTOR = "off"
    person, colleague = person_make(), person_make("bob", Role.ENGINEER)

    assert client_of(colleague).post(f"/admin/auth/user/{person.pk}/second-factor-reset/").status_code == 403


def test_optional_factor_is_asked_for_once_it_is_set_up(clock, settings: Settings) -> None:
    settings.SGM_CONSOLE_SECOND_FACTOR = "optional"
    person = person_make()
    client = client_of(person)
    assert client.get(SITES).status_code == 200

    set_up(client, person)

    assert client_of(person).get(SITES).status_code == 302


def test_nobody_is_led_to_another_host_after_the_code(required, clock) -> None:
    person = person_make()
    set_up(client_of(person), person)
    clock.shift(timedelta(seconds=30))

    answer = client_of(person).post(
        "/admin/second-factor/verify/", {"code": now_code(person), "next": "//evil.example/admin/"}
    )

    assert answer["Location"] == "/admin/"
