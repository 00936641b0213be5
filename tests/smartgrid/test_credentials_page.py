"""What docs/credentials.md tells operators to do is there to be done."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.management import get_commands, load_command_class
from pytest_django import Settings

from smartgrid.api.authentication import trusted_issuers

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "credentials.md").read_text()


def told() -> list[str]:
    """Each command with its arguments, as it stands in the text."""
    text = " ".join(PAGE.split())
    return sorted(set(re.findall(r"`manage\.py ([a-z_]+ [a-z]+(?: --[a-z]+)?)`", text)))


@pytest.mark.parametrize("line", told())
def test_command_takes_what_the_page_gives_it(line: str) -> None:
    name, *arguments = line.split()

    parser = load_command_class(get_commands()[name], name).create_parser("manage.py", name)

    parser.parse_args(arguments)


def test_page_tells_of_every_secret() -> None:
    named = {line.split()[0] for line in told()}

    assert named == {"issuer_key", "root_token", "encryption_key", "token_hash"}


def test_examples_of_issuers_are_taken(settings: Settings) -> None:
    (example,) = re.findall(r"SGM_ISSUERS=(\[.*\])", PAGE)
    settings.SGM_ISSUERS = json.loads(example)
    settings.SGM_ISSUER_KEY_FILE = ""

    assert set(trusted_issuers()) == {"https://example.eu.auth0.com/"}


@pytest.mark.parametrize("key", ["jwks_uri", "jwks", "url"])
def test_setting_that_the_page_does_not_know_is_refused(settings: Settings, key: str) -> None:
    settings.SGM_ISSUERS = [{"issuer": "https://a.example/", "audience": "a", key: "https://a.example/keys"}]

    with pytest.raises(ImproperlyConfigured, match="SGM_ISSUERS"):
        trusted_issuers()
