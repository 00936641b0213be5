"""Our table of periodic work in the database, what operators change of it, and one run a period."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
from celery import schedules
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.utils import timezone
from django_celery_beat.models import IntervalSchedule, PeriodicTask

from sites_app.models import PeriodicRun
from sites_app.periodic import (
    PeriodicDefault,
    periodic_run_claim,
    periodic_tasks_off,
    periodic_tasks_sync,
)

pytestmark = pytest.mark.django_db

TASK = "sites_app.tasks.mark_silent_nodes"


def every(seconds: float, *, expires_s: int | None = None) -> PeriodicDefault:
    return PeriodicDefault(
        task=TASK, schedule=schedules.schedule(timedelta(seconds=seconds)), queue="sync", expires_s=expires_s
    )


def period_of(name: str) -> str:
    return str(PeriodicTask.objects.get(name=name).interval)


def operator_sets(name: str, *, every: int, period: str = "seconds") -> None:
    row = PeriodicTask.objects.get(name=name)
    row.interval = IntervalSchedule.objects.create(every=every, period=period)
    row.save()


def ran_ago(name: str, **ago: float) -> None:
    PeriodicRun.objects.update_or_create(name=name, defaults={"ran_at": timezone.now() - timedelta(**ago)})


# --- the table ---------------------------------------------------------------------------------------------


def test_table_stands_in_the_database_with_its_queue_and_expiry():
    periodic_tasks_sync(defaults={"look": every(10, expires_s=5)})
    row = PeriodicTask.objects.get(name="look")
    assert (row.task, row.queue, row.expire_seconds, row.enabled) == (TASK, "sync", 5, True)
    assert period_of("look") == "every 10 seconds"


def test_long_periods_are_written_as_people_read_them():
    periodic_tasks_sync(defaults={"a": every(900), "b": every(86400)})
    assert (period_of("a"), period_of("b")) == ("every 15 minutes", "every day")


def test_time_of_day_is_kept_as_such():
    nightly = PeriodicDefault(task=TASK, schedule=schedules.crontab(minute="10", hour="3"), queue="sync")
    periodic_tasks_sync(defaults={"nightly": nightly})
    periodic_tasks_sync(defaults={"nightly": nightly})
    crontab = PeriodicTask.objects.get().crontab
    assert (crontab.minute, crontab.hour) == ("10", "3")


def test_synchronising_again_changes_nothing():
    for _ in range(2):
        periodic_tasks_sync(defaults={"look": every(10), "also": every(10)})
    assert PeriodicTask.objects.count() == 2
    assert IntervalSchedule.objects.count() == 1


def test_what_an_operator_changed_stays():
    periodic_tasks_sync(defaults={"look": every(10)})
    operator_sets("look", every=42)
    PeriodicTask.objects.filter(name="look").update(enabled=False)
    periodic_tasks_sync(defaults={"look": every(10)})
    periodic_tasks_sync(defaults={"look": every(20)})
    assert period_of("look") == "every 42 seconds"
    assert not PeriodicTask.objects.get(name="look").enabled


def test_new_default_is_taken_over_where_no_operator_has_changed_it():
    periodic_tasks_sync(defaults={"look": every(10)})
    PeriodicTask.objects.filter(name="look").update(enabled=False)
    periodic_tasks_sync(defaults={"look": every(20, expires_s=7)})
    row = PeriodicTask.objects.get(name="look")
    assert (period_of("look"), row.expire_seconds, row.enabled) == ("every 20 seconds", 7, False)


def test_what_left_the_table_is_removed_and_operators_own_tasks_stay():
    periodic_tasks_sync(defaults={"old": every(10), "kept": every(10)})
    PeriodicTask.objects.create(name="own", task=TASK, interval=IntervalSchedule.objects.get())
    periodic_run_claim(name="own", period_s=10)
    periodic_tasks_sync(defaults={"kept": every(10)})
    assert set(PeriodicTask.objects.values_list("name", flat=True)) == {"kept", "own"}


def test_what_does_not_run_as_it_should_is_named():
    periodic_tasks_sync(defaults={name: every(10) for name in ("fine", "off", "slow", "gone")})
    PeriodicTask.objects.filter(name="off").update(enabled=False)
    operator_sets("fine", every=60)
    operator_sets("slow", every=2, period="hours")
    PeriodicTask.objects.get(name="gone").delete()
    assert periodic_tasks_off() == [
        "'gone' is missing; it comes back when beat is started again",
        "'off' is disabled",
        "'slow' runs every 2 hours instead of every 10 seconds",
    ]


# --- the console -------------------------------------------------------------------------------------------


@pytest.fixture
def operator():
    client = Client()
    client.force_login(User.objects.create_superuser("operator", "operator@example.com", "x"))
    return client


def test_operator_changes_a_period_in_the_console(operator):
    periodic_tasks_sync(defaults={"look": every(10)})
    row = PeriodicTask.objects.get(name="look")
    added = operator.post(
        "/admin/django_celery_beat/intervalschedule/add/", {"every": "42", "period": "seconds"}
    )
    interval = IntervalSchedule.objects.get(every=42)
    address = f"/admin/django_celery_beat/periodictask/{row.pk}/change/"
    saved = operator.post(address, {"enabled": "on", "interval": interval.pk, "crontab": ""})
    assert (added.status_code, saved.status_code) == (302, 302)
    periodic_tasks_sync(defaults={"look": every(10)})
    assert period_of("look") == "every 42 seconds"


@pytest.mark.parametrize("periods", ["neither", "both"])
def test_task_without_a_period_or_with_two_is_refused(operator, periods):
    nightly = PeriodicDefault(task=TASK, schedule=schedules.crontab(minute="10", hour="3"), queue="sync")
    periodic_tasks_sync(defaults={"look": every(10), "nightly": nightly})
    row = PeriodicTask.objects.get(name="look")
    crontab = PeriodicTask.objects.get(name="nightly").crontab
    given = {"interval": row.interval.pk, "crontab": crontab.pk} if periods == "both" else {}
    page = operator.post(
        f"/admin/django_celery_beat/periodictask/{row.pk}/change/", {"enabled": "on", **given}
    )
    assert page.status_code == 200
    assert period_of("look") == "every 10 seconds"


def test_period_below_a_second_is_refused(operator):
    page = operator.post(
        "/admin/django_celery_beat/intervalschedule/add/", {"every": "5", "period": "microseconds"}
    )
    assert "A period is a second or longer." in page.content.decode()
    assert not IntervalSchedule.objects.exists()


def test_period_that_tasks_have_is_neither_changed_nor_deleted(operator):
    periodic_tasks_sync(defaults={"look": every(10)})
    address = f"/admin/django_celery_beat/intervalschedule/{IntervalSchedule.objects.get().pk}"
    assert operator.post(f"{address}/change/", {"every": "1", "period": "days"}).status_code == 403
    assert operator.post(f"{address}/delete/", {"post": "yes"}).status_code == 403


def test_console_says_what_is_switched_off(operator):
    periodic_tasks_sync(defaults={"look": every(10)})
    PeriodicTask.objects.update(enabled=False)
    page = operator.get("/admin/django_celery_beat/periodictask/")
    assert "&#x27;look&#x27; is disabled." in page.content.decode()


@pytest.mark.parametrize("model", ["solarschedule", "clockedschedule"])
def test_schedules_nobody_needs_are_not_in_the_console(operator, model):
    assert operator.get(f"/admin/django_celery_beat/{model}/").status_code == 404


# --- one run a period --------------------------------------------------------------------------------------


def test_work_is_started_once_a_period():
    assert periodic_run_claim(name="look", period_s=10)
    assert not periodic_run_claim(name="look", period_s=10)
    ran_ago("look", seconds=8)
    assert not periodic_run_claim(name="look", period_s=10)
    ran_ago("look", seconds=9.5)
    assert periodic_run_claim(name="look", period_s=10)


def test_clock_that_was_set_back_does_not_hold_up_the_work():
    ran_ago("look", hours=-1)
    assert periodic_run_claim(name="look", period_s=10)
    assert not periodic_run_claim(name="look", period_s=10)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("known", [True, False], ids=["known", "first time"])
def test_of_many_beats_at_one_moment_one_starts_the_work(known):
    beats, rounds = 4, 5
    started: list[int] = []

    def a_period_ago() -> None:
        if known:
            PeriodicRun.objects.update(ran_at=None)

    ready, done = threading.Barrier(beats, action=a_period_ago), threading.Barrier(beats)

    def beat() -> None:
        for number in range(rounds if known else 1):
            ready.wait(10)
            if periodic_run_claim(name="look", period_s=10):
                started.append(number)
            done.wait(10)
        connection.close()

    if known:
        ran_ago("look", hours=1)
    threads = [threading.Thread(target=beat) for _ in range(beats)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert started == list(range(rounds if known else 1))


@pytest.mark.django_db(transaction=True)
def test_two_beats_that_start_at_once_write_the_table_once():
    ready = threading.Barrier(2)
    failed: list[BaseException] = []

    def start() -> None:
        try:
            ready.wait(10)
            periodic_tasks_sync(defaults={name: every(10) for name in ("a", "b", "c")})
        except Exception as error:  # noqa: BLE001 - told by the assertion below
            failed.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert PeriodicTask.objects.count() == 3
