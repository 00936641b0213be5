from __future__ import annotations

import pytest
from rest_framework.test import APIClient

from smartgrid import live


@pytest.fixture
def redis_at(settings):
    """Point `live` at another Redis for one test."""

    def point(url):
        settings.SGM_REDIS_URL = url
        live.client.cache_clear()

    yield point
    live.client().close()
    live.client.cache_clear()


def test_living_process_says_so_without_credentials_or_services():
    assert APIClient().get("/healthz").json() == {"status": "ok"}


@pytest.mark.django_db
def test_not_ready_without_redis(redis_at):
    redis_at("redis://127.0.0.1:1/0")
    response = APIClient().get("/readyz")
    assert response.status_code == 503
    assert response.json() == {"status": "unavailable", "database": "ok", "redis": "unavailable"}


@pytest.mark.django_db
def test_ready_with_database_and_redis(redis_at, redis_url):
    redis_at(redis_url)
    response = APIClient().get("/readyz")
    assert response.status_code == 200
    assert response.json() == {"status": "ok", "database": "ok", "redis": "ok"}
