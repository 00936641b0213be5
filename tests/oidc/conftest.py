"""A real identity provider for the tests of this directory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.npm import NodeMissingError
from tests.oidc.provider import Provider, provider_running


@pytest.fixture(scope="session")
def running_provider() -> Iterator[Provider]:
    try:
        context = provider_running()
        provider = context.__enter__()
    except NodeMissingError as reason:
        pytest.skip(f"NOT TESTED against a third-party identity provider: {reason}")
    try:
        yield provider
    finally:
        context.__exit__(None, None, None)


@pytest.fixture(scope="session")
def people_provider() -> Iterator[Provider]:
    """One that people log in at, and are sent back from to Django's test client."""
    try:
        with provider_running(
            "http://testserver/admin/oidc/callback/", "http://testserver/admin/login/"
        ) as provider:
            yield provider
    except NodeMissingError as reason:
        pytest.skip(f"NOT TESTED against a third-party identity provider: {reason}")


@pytest.fixture
def provider(running_provider: Provider) -> Provider:
    """The provider, running also where the test before this one had stopped it."""
    running_provider.start()
    return running_provider
