"""What the replay of the guide needs of a running system."""

from __future__ import annotations

from tests.control_app.conftest import eager, live_redis, sending

__all__ = ["eager", "live_redis", "sending"]
