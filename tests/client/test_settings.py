"""Whom to ask, and that the credentials of one place are never sent to another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sgm import ConfigurationError, Settings, settings_load
from sgm.settings import profile_forget, profile_read, profile_write

PARK = Settings(
    api_url="https://park.example/v1",
    token_url="https://issuer.example/oauth/token",
    client_id="park-client",
    client_secret='park "secret" \\',
    management_token="tok_park",
    audience="park-api",
)
ENVIRONMENT = {
    "SGM_API_URL": "https://grid.example/v1/",
    "SGM_CLIENT_ID": "grid-client",
    "SGM_CLIENT_SECRET": "grid secret",
    "SGM_MANAGEMENT_TOKEN": "tok_grid",
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A file with the profiles `default` and `park`."""
    path = tmp_path / "sgm" / "config.toml"
    profile_write(path, "park", PARK)
    profile_write(path, "default", PARK)
    return path


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    path = tmp_path / "demo.json"
    content = {
        "api_url": "http://127.0.0.1:8000/v1",
        "token_url": "http://127.0.0.1:8000/oauth/token",
        "audience": "curtailment-api",
        "client_id": "demo-client",
        "client_secret": "demo secret",
        "root_token": "root",
        "site_token": "tok_demo",
    }
    path.write_text(json.dumps(content))
    return path


def test_environment_outranks_the_default_profile(config: Path):
    found = settings_load(environment=ENVIRONMENT, config=config)
    assert (found.api_url, found.client_id, found.whence) == (
        "https://grid.example/v1",
        "grid-client",
        "environment",
    )


def test_named_profile_outranks_the_environment(config: Path):
    found = settings_load(profile="park", environment=ENVIRONMENT, config=config)
    assert (found.api_url, found.client_id, found.audience) == (PARK.api_url, "park-client", "park-api")


def test_default_profile_serves_where_nothing_is_said(config: Path):
    assert settings_load(environment={}, config=config).management_token == "tok_park"


def test_demo_is_asked_with_its_root_token(config: Path, demo: Path):
    found = settings_load(demo=demo, environment=ENVIRONMENT, config=config)
    assert (found.client_id, found.management_token) == ("demo-client", "root")


def test_credentials_of_a_profile_do_not_go_to_another_address(config: Path):
    """An address in the environment, and its credentials forgotten: nothing is filled in from elsewhere."""
    with pytest.raises(ConfigurationError, match="SGM_CLIENT_SECRET"):
        settings_load(environment={"SGM_API_URL": "https://grid.example/v1"}, config=config)
    with pytest.raises(ConfigurationError, match="SGM_MANAGEMENT_TOKEN"):
        settings_load(given={"api_url": "https://grid.example/v1"}, environment=ENVIRONMENT, config=config)


def test_single_value_may_be_overridden(config: Path):
    found = settings_load(environment={"SGM_MANAGEMENT_TOKEN": "tok_other"}, config=config)
    assert (found.api_url, found.management_token) == (PARK.api_url, "tok_other")


def test_issuer_defaults_to_the_api_s_own(config: Path):
    found = settings_load(environment=ENVIRONMENT, config=config)
    assert (found.token_url, found.audience) == ("https://grid.example/oauth/token", "curtailment-api")


def test_profile_is_read_as_it_was_written(config: Path):
    assert profile_read(config, "park")["client_secret"] == PARK.client_secret
    assert config.stat().st_mode & 0o777 == 0o600
    assert profile_forget(config, "park")
    assert not profile_forget(config, "park")
    assert profile_read(config, "default")["client_id"] == "park-client"


@pytest.mark.parametrize(
    "content", ["[", "profiles = 1", "[profiles.default]\napi_url = 1", "[profiles.default]\nx = ''"]
)
def test_damaged_file_is_told_by_its_name(config: Path, content: str):
    config.write_text(content)
    with pytest.raises(ConfigurationError, match=r"config\.toml"):
        settings_load(environment={}, config=config)


@pytest.mark.parametrize("content", ["", "[]", "{}", "null"])
def test_file_that_describes_no_demo_is_told_by_its_name(demo: Path, content: str):
    demo.write_text(content)
    with pytest.raises(ConfigurationError, match=r"demo\.json"):
        settings_load(demo=demo, environment={})


def test_unencrypted_address_is_for_this_machine_or_by_permission(config: Path):
    far = ENVIRONMENT | {"SGM_API_URL": "http://grid.example/v1"}
    with pytest.raises(ConfigurationError, match="SGM_ALLOW_HTTP"):
        settings_load(environment=far, config=config)
    assert settings_load(environment=far | {"SGM_ALLOW_HTTP": "1"}, config=config).api_url.startswith("http:")


@pytest.mark.parametrize("secret", ["a\nb", "a\0b", "\u00e9"])
def test_credential_that_cannot_stand_in_a_header_is_refused(config: Path, secret: str):
    with pytest.raises(ConfigurationError, match="credential"):
        settings_load(environment=ENVIRONMENT | {"SGM_MANAGEMENT_TOKEN": secret}, config=config)
