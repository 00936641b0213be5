"""No node can speak for another: mutual TLS on a real broker, with the configuration of production."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.services]
TENANT = "tenant-123"
WITHIN_S = 10.0
