"""What holds on every page: who comes in, what leaves the host, who can use it."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.system


def test_person_logs_in_and_finds_the_fleet(at_desk):
    at = at_desk("viewer")
    expect(at.page.get_by_role("heading", name="Fleet").first).to_be_visible()
    expect(at.page.get_by_role("link", name=re.compile("Sites")).first).to_be_visible()
    at.picture("fleet")
