from __future__ import annotations

from collections.abc import Iterator

import pytest

from smartgrid import live


@pytest.fixture
def live_redis(redis_url: str, settings) -> Iterator[str]:
    """A real Redis behind `live`, empty at first."""
    settings.SGM_REDIS_URL = redis_url
    live.client.cache_clear()
    yield redis_url
    live.client().close()
    live.client.cache_clear()


@pytest.fixture
def no_redis(settings) -> Iterator[None]:
    """Nobody listens where Redis should be."""
    settings.SGM_REDIS_URL = "redis://127.0.0.1:1/0"
    live.client.cache_clear()
    yield
    live.client().close()
    live.client.cache_clear()
