"""What web asks of PostgreSQL ends in time; what others ask may take as long as it takes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from cryptography.fernet import Fernet

SLEEP = """
import {module}
from django.db import OperationalError, connection
try:
    with connection.cursor() as cursor:
        cursor.execute("SHOW lock_timeout")
        print(cursor.fetchone()[0])
        cursor.execute("SELECT pg_sleep(1.5)")
    print("slept")
except OperationalError as error:
    print("given up")
"""
COMMAND = "smartgrid.celery, django; django.setup()"


def said(url: str, *, module: str, **env: str) -> list[str]:
    """What a process prints that came up as this module makes it come up."""
    process = subprocess.run(
        [sys.executable, "-c", SLEEP.format(module=module)],
        env={
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "smartgrid.settings",
            "SGM_SECRET_KEY": "only for tests, and long enough to keep Django's checks content 0123456789",
            "SGM_TOKEN_HASH_KEY": "hash key for tests, as long as it has to be 0123456789",
            "SGM_TOKEN_ENCRYPTION_KEYS": Fernet.generate_key().decode(),
            "SGM_ROOT_TOKENS": "root-token-for-tests-one-0123456789",
            "SGM_DATABASE_URL": url,
            "SGM_DATABASE_STATEMENT_TIMEOUT_S": "1",
            **env,
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return process.stdout.split("\n")[:-1]


def test_web_gives_up_a_statement_that_takes_too_long(postgres_url: str) -> None:
    assert said(postgres_url, module="smartgrid.wsgi", SGM_DATABASE_LOCK_TIMEOUT_S="3") == ["3s", "given up"]


def test_web_keeps_what_the_databases_url_asks_for(postgres_url: str) -> None:
    url = f"{postgres_url}?options=-c%20lock_timeout%3D9s%20-c%20work_mem%3D9MB"
    assert said(url, module="smartgrid.wsgi", SGM_DATABASE_LOCK_TIMEOUT_S="3") == ["3s", "given up"]


@pytest.mark.parametrize("none", ["0"])
def test_limits_can_be_switched_off(postgres_url: str, none: str) -> None:
    limits = {"SGM_DATABASE_LOCK_TIMEOUT_S": none, "SGM_DATABASE_STATEMENT_TIMEOUT_S": none}
    assert said(postgres_url, module="smartgrid.wsgi", **limits) == ["0", "slept"]


def test_commands_and_workers_are_not_limited(postgres_url: str) -> None:
    assert said(postgres_url, module=COMMAND) == ["0", "slept"]
