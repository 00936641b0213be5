"""What central concludes of holds, sources and commanded power, and where it says that it does not know."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from django.utils import timezone

from control_app.commanded import commanded_curve
from control_app.models import ControlLog, Status
from control_app.selectors import RunningHold, holds_running
from control_app.sources import Source, device_sources
from devices_app.models import Device
from schedules_app.models import Schedule
from sites_app.models import Site
from tests.console.control_room import commanded
from tests.factories import ROOT, Story, meter_make, principal_of_token, story_make

pytestmark = pytest.mark.django_db

NOON = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


@pytest.fixture
def story() -> Story:
    return story_make()


def holds(now: datetime | None = None) -> list[RunningHold]:
    return holds_running(principal=ROOT, now=now or timezone.now())


def test_confirmed_request_holds_its_device_for_as_long_as_the_node_said(story: Story) -> None:
    command = commanded(story.device_a, value=40, holds_s=50)

    (hold,) = holds()

    assert (hold.device_id, hold.value) == (story.device_a.pk, 40)
    assert hold.ends_at == command.request.created_at + timedelta(seconds=50)


def test_hold_of_which_the_node_said_no_length_lasts_for_the_sites_limit(story: Story) -> None:
    command = commanded(story.device_a, holds_s=None)

    (hold,) = holds()

    assert hold.ends_at == command.request.created_at + timedelta(seconds=60)


def test_lowered_limit_shortens_a_running_hold(story: Story) -> None:
    command = commanded(story.device_a, holds_s=55)
    Site.objects.filter(pk=story.site_a.pk).update(curtailment_time_limit=30)

    (hold,) = holds()

    assert hold.ends_at == command.request.created_at + timedelta(seconds=30)


def test_hold_whose_time_is_over_is_none(story: Story) -> None:
    commanded(story.device_a, holds_s=50, at=timezone.now() - timedelta(seconds=51))

    assert holds() == []


def test_renewed_hold_ends_by_its_last_request(story: Story) -> None:
    commanded(story.device_a, at=timezone.now() - timedelta(seconds=40), holds_s=60)
    last = commanded(story.device_a, holds_s=60)

    (hold,) = holds()

    assert hold.request_id == last.request_id


def test_released_device_is_held_no_longer_although_its_value_stayed(story: Story) -> None:
    commanded(story.device_a)
    commanded(story.device_a, value=None, holds_s=None)

    assert holds() == []


def test_refused_release_leaves_the_hold(story: Story) -> None:
    commanded(story.device_a)
    commanded(story.device_a, value=None, holds_s=None, code="write_failed")

    assert len(holds()) == 1


def test_hold_that_the_nodes_log_ended_is_none(story: Story) -> None:
    command = commanded(story.device_a)
    ControlLog.objects.create(
        site=story.site_a,
        request=command.request,
        status=Status.SUCCESS,
        category="inverter",
        watchdog=True,
        value=100,
        result={"updated": {story.device_a.device_tag: None}, "not_updated": {}},
    )

    assert holds() == []


def test_holds_of_others_sites_are_not_seen(story: Story) -> None:
    commanded(story.device_a)
    commanded(story.device_b)

    found = holds_running(principal=principal_of_token(story.token_a), now=timezone.now())

    assert [hold.device_id for hold in found] == [story.device_a.pk]


def test_hold_that_ends_first_is_first(story: Story) -> None:
    commanded(story.device_a, holds_s=50)
    commanded(story.device_b, holds_s=20)

    assert [hold.device_id for hold in holds()] == [story.device_b.pk, story.device_a.pk]


# --- sources -------------------------------------------------------------------------------------------------


def source(
    device: Device, *, scheduled: float | None = None, held: bool = False, silent: bool = False
) -> Source | None:
    found = device_sources(
        [device],
        held={device.pk} if held else set(),
        loops=[],
        scheduled={device.category: scheduled},
        silent_nodes={device.node_id} if silent else set(),
    )
    return found[device.pk]


def test_hold_outranks_what_is_planned(story: Story) -> None:
    story.device_a.value = 30

    assert source(story.device_a, scheduled=30, held=True) is Source.DIRECT


def test_value_of_the_slot_in_force_is_the_schedules(story: Story) -> None:
    story.device_a.value = 30

    assert source(story.device_a, scheduled=30) is Source.SCHEDULE


def test_default_without_a_slot_is_the_default(story: Story) -> None:
    story.device_a.value = story.device_a.default_value

    assert source(story.device_a) is Source.DEFAULT


@pytest.mark.parametrize("scheduled", [None, 80.0])
def test_value_that_nothing_explains_is_not_known(story: Story, scheduled: float | None) -> None:
    story.device_a.value = 30

    assert source(story.device_a, scheduled=scheduled) is None


def test_silent_node_leaves_the_source_unknown(story: Story) -> None:
    story.device_a.value = 30

    assert source(story.device_a, scheduled=30, silent=True) is None


def test_meter_has_no_source(story: Story) -> None:
    meter = meter_make(node=story.node_a)

    assert device_sources([meter], held=set(), loops=[], scheduled={}, silent_nodes=set()) == {}


# --- commanded power -----------------------------------------------------------------------------------------


def commands(site: Site, *, looped: bool = False, step_s: float = 30) -> list[float | None]:
    """What was commanded in the eight steps before noon, seen an hour later."""
    devices = list(site.devices.select_related("device_type"))
    step = timedelta(seconds=step_s)
    return commanded_curve(
        site=site,
        devices=devices,
        looped={device.pk for device in devices} if looped else set(),
        starts=[NOON - (8 - number) * step for number in range(8)],
        step=step,
        now=NOON + timedelta(hours=1),
    )


def logged(command_at: datetime, story: Story, *, value: float, holds_s: float) -> None:
    command = commanded(story.device_a, at=command_at, value=value, holds_s=holds_s)
    ControlLog.objects.create(
        created_at=command_at,
        site=story.site_a,
        request=command.request,
        status=Status.SUCCESS,
        category="inverter",
        value=command.request.value,
        result=command.request.result,
    )


def test_commanded_power_is_the_default_where_nobody_said_otherwise(story: Story) -> None:
    assert commands(story.site_a) == [60.0] * 8


def test_commanded_power_is_that_of_the_schedule_then(story: Story) -> None:
    Schedule.objects.create(
        site=story.site_a, category="inverter", valid_on=NOON.date(), schedule={"11:45": 50}
    )

    assert commands(story.site_a) == [30.0] * 8


def test_hold_shows_from_its_request_to_its_end(story: Story) -> None:
    logged(NOON - timedelta(seconds=180), story, value=20, holds_s=60)

    assert commands(story.site_a) == [60.0, 60.0, 12.0, 12.0, 60.0, 60.0, 60.0, 60.0]


def test_what_a_loop_wanted_is_not_known_afterwards(story: Story) -> None:
    logged(NOON - timedelta(seconds=180), story, value=20, holds_s=60)

    assert commands(story.site_a, looped=True) == [None, None, 12.0, 12.0, None, None, None, None]
