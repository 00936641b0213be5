"""`manage.py issuer_key`: the signing keys of the embedded issuer, from the first to the next."""

from __future__ import annotations

from argparse import ArgumentParser
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone
from oauth2_provider.settings import oauth2_settings

from smartgrid.errors import SgmError
from smartgrid.issuer_keys import (
    PUBLISHED_BEFORE,
    IssuerKey,
    KeyState,
    issuer_key_create,
    issuer_key_replace,
    issuer_key_rotate,
    issuer_keys,
    issuer_keys_retire,
    key_needed_until,
)


class Command(BaseCommand):
    help = "Make, list, rotate and retire the keys in SGM_ISSUER_KEY_FILE. docs/credentials.md has the order."

    def add_arguments(self, parser: ArgumentParser) -> None:
        commands = parser.add_subparsers(dest="command", required=True)
        commands.add_parser("create", help="make the file with a first key; one that is there stays")
        commands.add_parser("list", help="show the keys and what each is there for")
        rotate = commands.add_parser("rotate", help="publish a new key; called again later: sign with it")
        rotate.add_argument(
            "--leaked",
            action="store_true",
            help="at once and without the former keys: all tokens of the issuer end",
        )
        commands.add_parser("retire", help="take out former keys of which no token can live any more")

    def handle(self, *args: Any, command: str, **options: Any) -> None:
        if not settings.SGM_ISSUER_KEY_FILE:
            raise CommandError("SGM_ISSUER_KEY_FILE is not set: the embedded issuer is off.")
        path = Path(settings.SGM_ISSUER_KEY_FILE)
        try:
            getattr(self, f"_{command}")(path, now=timezone.now(), **options)
        except SgmError as error:
            raise CommandError(error.detail) from error

    def _create(self, path: Path, **_: Any) -> None:
        is_new = not path.exists()
        try:
            issuer_key_create(path)
        except OSError as error:
            raise CommandError(f"{path}: {error.strerror}") from error
        self.stdout.write("A key was made." if is_new else "There is a key already; it stays.")
        self._list(path)

    def _list(self, path: Path, **_: Any) -> None:
        for key in issuer_keys(path):
            self.stdout.write(f"{key.kid}  {_meaning(key)}")

    def _rotate(self, path: Path, *, now: datetime, leaked: bool, **_: Any) -> None:
        if leaked:
            key = issuer_key_replace(path, now=now)
            self.stdout.write(
                f"Key {key.kid} signs, and it is the only one. Restart the processes of the API now: they"
                " honour the former keys for up to ten minutes. Every client has to fetch a token again."
            )
            return
        key = issuer_key_rotate(path, now=now)
        if key.state is KeyState.WAITS:
            self.stdout.write(
                f"Key {key.kid} is published and does not sign yet. Run this again at"
                f" {now + PUBLISHED_BEFORE:%Y-%m-%dT%H:%M:%SZ} or later."
            )
            return
        self.stdout.write(
            f"Key {key.kid} signs from now on. The former key verifies its tokens for as long as they live;"
            f" `issuer_key retire` takes it out after {_token_life()}."
        )

    def _retire(self, path: Path, *, now: datetime, **_: Any) -> None:
        done = issuer_keys_retire(path, now=now, token_life=_token_life())
        if not done:
            self.stdout.write("There are no former keys: nothing to do.")
        for key in done:
            self.stdout.write(f"Key {key.kid} is gone.")


def _token_life() -> timedelta:
    return timedelta(seconds=oauth2_settings.ACCESS_TOKEN_EXPIRE_SECONDS)


def _meaning(key: IssuerKey) -> str:
    if key.state is KeyState.SIGNS:
        return "signs"
    if key.state is KeyState.WAITS:
        assert key.published_at is not None
        return f"waits; may sign from {key.published_at + PUBLISHED_BEFORE:%Y-%m-%dT%H:%M:%SZ}"
    return f"former; needed until {key_needed_until(key, token_life=_token_life()):%Y-%m-%dT%H:%M:%SZ}"
