"""Our scheduler: the table it starts from, the clock it reads, and two of it side by side."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import redis
import time_machine
from celery import Celery
from celery.signals import before_task_publish
from django.core.management import call_command
from django_celery_beat.models import IntervalSchedule, PeriodicTask

from sites_app.models import PeriodicRun
from sites_app.tasks import mark_silent_nodes
from smartgrid.beat import Scheduler, defaults_of
from smartgrid.celery import app
from tests.servers import until

ROOT = Path(__file__).resolve().parents[2]
LOOK, SECOND = "look", "look too"
OWN = "each second"
TASK = str(mark_silent_nodes.name)


@pytest.fixture
def sent() -> Iterator[list[str]]:
    """The names of the periodic tasks that were published, as they are."""
    names: list[str] = []

    def on_publish(headers: dict[str, str], **_: object) -> None:
        names.append(headers["periodic_task_name"])

    before_task_publish.connect(on_publish)
    yield names
    before_task_publish.disconnect(on_publish)


@pytest.fixture
def small_app() -> Celery:
    """Two tasks of ours, every ten seconds."""
    small = Celery("small", broker="memory://", set_as_current=False)
    small.conf.task_default_queue = "sync"
    small.conf.timezone = "UTC"
    entry = {"task": TASK, "schedule": 10.0, "options": {"expires": 5}}
    small.conf.beat_schedule = {LOOK: entry, SECOND: entry}
    return small


@pytest.fixture
def beat(transactional_db, small_app: Celery) -> Iterator[Callable[[], Scheduler]]:
    """As many schedulers as a test starts."""
    started: list[Scheduler] = []

    def start() -> Scheduler:
        started.append(Scheduler(app=small_app))
        return started[-1]

    yield start
    for scheduler in started:
        # Else it writes down its last runs when this process ends, and the database is gone.
        scheduler._finalize.cancel()


def tick_through(scheduler: Scheduler) -> float:
    """Let a scheduler do all that is due now; the seconds until it wants to look again."""
    for _ in range(100):
        wait_s = float(scheduler.tick())
        if wait_s > 0:
            return wait_s
    raise AssertionError("the scheduler does not come to rest")


def a_period_ago() -> None:
    """The guard goes by the database's clock, which no test can turn: its last runs are as long ago."""
    PeriodicRun.objects.update(ran_at=datetime.now(UTC) - timedelta(days=3650))


def test_every_task_of_our_table_exists_and_says_what_it_does():
    defaults = defaults_of(app)
    assert defaults.keys() == app.conf.beat_schedule.keys()
    for default in defaults.values():
        assert default.description, f"{default.task} has no docstring for operators to read"
        assert default.queue in app.conf.task_queues
        assert default.expires_s is not None


def test_beat_takes_our_table_into_the_database(beat):
    beat()
    row = PeriodicTask.objects.get(name=LOOK)
    assert (row.task, row.queue, row.expire_seconds, str(row.interval)) == (
        TASK,
        "sync",
        5,
        "every 10 seconds",
    )
    assert row.description.startswith("Note as offline")
    assert not PeriodicTask.objects.exclude(name__in=[LOOK, SECOND]).exists()


def test_task_is_sent_once_a_period(beat, sent):
    with time_machine.travel(datetime.now(UTC), tick=False) as clock:
        scheduler = beat()
        clock.shift(11)
        tick_through(scheduler)
        assert sorted(sent) == [LOOK, SECOND]
        clock.shift(5)
        tick_through(scheduler)
        assert len(sent) == 2
        a_period_ago()
        clock.shift(6)
        tick_through(scheduler)
        assert sorted(sent) == [LOOK, LOOK, SECOND, SECOND]


def test_operators_new_period_is_taken_over_while_beat_runs(beat, sent):
    with time_machine.travel(datetime.now(UTC), tick=False) as clock:
        scheduler = beat()
        tick_through(scheduler)
        clock.shift(1)
        row = PeriodicTask.objects.get(name=LOOK)
        row.interval = IntervalSchedule.objects.create(every=2, period="seconds")
        row.save()
        PeriodicTask.objects.get(name=SECOND).delete()
        clock.shift(4)
        tick_through(scheduler)
        assert sent == [LOOK]


def test_clock_set_back_by_a_day_holds_up_no_task(beat, sent):
    with time_machine.travel(datetime.now(UTC), tick=False) as clock:
        scheduler = beat()
        clock.shift(11)
        tick_through(scheduler)
        sent.clear()
        a_period_ago()
        clock.shift(timedelta(days=-1))
        assert tick_through(scheduler) <= 10
        assert sorted(sent) == [LOOK, SECOND]
        # From there on it goes by the clock as it is now.
        a_period_ago()
        clock.shift(11)
        assert tick_through(scheduler) <= 10
        assert len(sent) == 4


def test_change_made_after_the_clock_was_set_back_counts(beat, sent):
    with time_machine.travel(datetime.now(UTC), tick=False) as clock:
        scheduler = beat()
        tick_through(scheduler)
        clock.shift(timedelta(hours=-1))
        tick_through(scheduler)
        sent.clear()
        a_period_ago()
        for row in PeriodicTask.objects.all():
            row.enabled = False
            row.save()
        clock.shift(30)
        tick_through(scheduler)
        assert sent == []


def test_second_beat_sends_nothing_in_the_same_period(beat, sent):
    with time_machine.travel(datetime.now(UTC), tick=False) as clock:
        first, second = beat(), beat()
        clock.shift(11)
        tick_through(first)
        clock.shift(3)
        tick_through(second)
        assert sorted(sent) == [LOOK, SECOND]


# --- two real ones -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_two_real_beats_give_one_run_a_period(database, redis_url, tmp_path, request):
    url = (
        f"sqlite:///{tmp_path}/sgm.sqlite3"
        if database == "sqlite"
        else request.getfixturevalue("postgres_url")
    )
    env = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "smartgrid.settings",
        "SGM_SECRET_KEY": "only for this test",
        "SGM_DATABASE_URL": url,
        "SGM_REDIS_URL": redis_url,
        "SGM_LOG_LEVEL": "DEBUG",
    }

    def manage(*args: str) -> None:
        subprocess.run(
            [sys.executable, "manage.py", *args], cwd=ROOT, env=env, check=True, capture_output=True
        )

    own = (
        "from django_celery_beat.models import IntervalSchedule, PeriodicTask;"
        "every = IntervalSchedule.objects.create(every=1, period='seconds');"
        f"PeriodicTask.objects.create(name='{OWN}', task='{TASK}', queue='sync', interval=every)"
    )
    manage("migrate", "--verbosity", "0")
    manage("shell", "--no-imports", "--command", own)
    argv = [sys.executable, "-m", "celery", "-A", "smartgrid", "beat", "--max-interval", "1"]
    logs = [tmp_path / f"beat-{number}.log" for number in range(2)]
    beats = []
    try:
        for log in logs:
            with log.open("wb") as output:
                beats.append(subprocess.Popen(argv, cwd=ROOT, env=env, stdout=output, stderr=output))
        with redis.Redis.from_url(redis_url) as queue:

            def runs() -> int:
                messages = [json.loads(raw) for raw in queue.lrange("sync", 0, -1)]
                return sum(message["headers"].get("periodic_task_name") == OWN for message in messages)

            # Each has found it due: one sent it, the other found it sent.
            until(lambda: all(OWN in log.read_text() for log in logs), what="a beat did not begin")
            began_s, before = time.monotonic(), runs()
            until(lambda: runs() >= before + 6, what="the beats fell silent")
            took_s = time.monotonic() - began_s
            assert [beat.poll() for beat in beats] == [None, None]
    finally:
        for beat in beats:
            beat.terminate()
        for beat in beats:
            beat.wait(60)
    # Two that do not know of each other send six in three seconds.
    assert took_s > 4


def test_check_of_the_database_names_what_is_switched_off(beat, capsys):
    beat()
    PeriodicTask.objects.filter(name=LOOK).update(enabled=False)
    call_command("check", "--database", "default")
    assert f"'{LOOK}' is disabled" in capsys.readouterr().err
