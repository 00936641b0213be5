"""What docs/closed-loop.md tells a commissioning engineer is so."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from devices_app.choices import LoopStand
from devices_app.models import ClosedLoop
from edge.core.loop.terms import Because
from tests.factories import ROOT, client_of, device_make, meter_make, story_make

pytestmark = pytest.mark.django_db

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "closed-loop.md").read_text(encoding="utf-8")


def test_example_creates_the_loop_that_the_page_describes() -> None:
    story, root = story_make(), client_of(ROOT)
    meter = meter_make(node=story.node_a, device_tag="METER_01")
    device_make(node=story.node_a, device_tag="INVERTER_02", peak_power_kw=100)
    body = json.loads(re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)[0])
    body["meter_id"] = str(meter.pk)

    made = root.post(f"/v1/sites/{story.site_a.pk}/loops", body)

    assert made.status_code == 200, made.json()
    told = made.json()
    assert {name: told[name] for name in body} == body
    assert {member["device_tag"] for member in told["members"]} == {"SMA_STP60_01", "INVERTER_02"}
    # The share of the limit that the page tells to choose.
    assert body["fallback_pct"] == 100 * body["export_limit_kw"] / told["nominal_kw"]

    (change,) = re.findall(r"`PATCH /v1/loops/\{id\}` with `(.*?)`", PAGE)
    assert root.patch(f"/v1/loops/{told['id']}", json.loads(change)).json()["enabled"] is True


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("time_step_s", 1),
        ("stale_after_s", 10),
        ("max_rate_pct_per_s", 100),
        ("deadband_kw", 0),
        ("kp", 0.3),
        ("ki", 0.15),
        ("kd", 0),
    ],
)
def test_defaults_are_those_that_the_page_names(name: str, said: float) -> None:
    assert getattr(ClosedLoop(), name) == said
    assert re.search(rf"`{name}`[ |]+{said:g}\b", PAGE)


def test_page_tells_of_every_stand_and_of_all_that_a_limiting_loop_is_bounded_by() -> None:
    rows = {
        stand: line
        for stand in LoopStand.values
        for line in PAGE.splitlines()
        if line.startswith(f"| `{stand}` ")
    }

    assert set(rows) == set(LoopStand.values)
    bounded_by = {
        Because.EXPORT_LIMIT,
        Because.IMPORT_LIMIT,
        Because.MEMBERS_LACK,
        Because.AT_MAXIMUM,
        Because.AT_MINIMUM,
        Because.NO_MEMBER,
    }
    assert {why for why in bounded_by if f"`{why.value}`" not in rows["limiting"]} == set()
