"""The guide's section on schedules, its requests as printed and in the order they stand there."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from urllib.parse import urlsplit
from uuid import UUID

import pytest
import time_machine

from schedules_app.models import Schedule
from schedules_app.services import schedule_create
from sites_app.models import Site
from tests.factories import client_of, device_make, node_make, principal_of_token, site_make, token_make

pytestmark = pytest.mark.django_db

GUIDE = Path(__file__).parent / "guide" / "schedules.txt"
SITE = UUID("01751407-d87b-4d89-b47f-cca4dfb85a92")
STORED, CREATED = "e9f01a2b-3c4d-5e6f-7a8b-9c0d1e2f3a4b", "f01a2b3c-4d5e-6f7a-8b9c-0d1e2f3a4b5c"
EXAMPLE = re.compile(
    r"^(?P<curl>curl .*?)\n\nResponse:\n\n(?P<response>[\[{].*?^[\]}])$", re.DOTALL | re.MULTILINE
)


@dataclass(frozen=True)
class Example:
    """One request of the guide and the answer it prints."""

    method: str
    path: str
    body: str | None
    response: str

    @property
    def name(self) -> str:
        return f"{self.method} {self.path}"


def _examples() -> list[Example]:
    found = []
    for match in EXAMPLE.finditer(GUIDE.read_text()):
        words = shlex.split(match["curl"].replace("\\\n", " "))
        method = words[words.index("-X") + 1]
        url = next(word for word in words if word.startswith("https://"))
        body = words[words.index("-d") + 1] if "-d" in words else None
        found.append(Example(method, urlsplit(url).path, body, match["response"]))
    return found


EXAMPLES = _examples()


@pytest.fixture
def holder():
    """The holder of a token of the guide's site, in the guide's days."""
    with time_machine.travel("2024-08-01T10:52:55Z", tick=False):
        site = site_make(id=SITE, site_tag="solarpanel_site_a")
        device_make(node=node_make(site=site, name="node-01"), device_tag="SMA_STP60_01", peak_power_kw=60)
        stored = schedule_create(
            site=site,
            category="inverter",
            valid_on=date(2024, 8, 5),
            slots={"09:00": 50, "12:00": 75, "15:00": 60, "18:00": 100},
        )
        Schedule.objects.filter(pk=stored.pk).update(id=STORED)
        yield client_of(principal_of_token(token_make(site)))


def test_the_guide_prints_all_seven_forms():
    assert [example.name for example in EXAMPLES] == [
        "GET /v1/schedules",
        "POST /v1/schedules",
        "PUT /v1/schedules/2024-08-06/inverter",
        "GET /v1/schedules/2024-08-06",
        f"GET /v1/sites/{SITE}/schedules",
        f"GET /v1/sites/{SITE}/schedules/2024-08-06",
        f"DELETE /v1/schedules/{CREATED}",
    ]


def test_every_request_is_answered_as_printed_to_the_order_of_the_fields(holder):
    for example in EXAMPLES:
        response = holder.generic(
            example.method, example.path, example.body or "", content_type="application/json"
        )
        assert response.status_code == 200, (example.name, response.content)
        if example.method == "POST":
            # Ids are drawn; from here on it is the one the guide prints.
            drawn = response.json()["id"]
            Schedule.objects.filter(pk=drawn).update(id=CREATED)
            response.content = response.content.replace(drawn.encode(), CREATED.encode())
        shown, printed = json.loads(response.content), json.loads(example.response)
        assert json.dumps(shown, indent=1) == json.dumps(printed, indent=1), example.name
    assert [str(schedule.pk) for schedule in Schedule.objects.all()] == [STORED]
    assert Site.objects.count() == 1
