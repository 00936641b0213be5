"""`manage.py encryption_key`: a new key for management tokens and the passwords of devices."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from cryptography.fernet import Fernet
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from devices_app.encrypted import COLUMNS
from sites_app.rotation import texts_reencrypt, texts_under_former_keys


class Command(BaseCommand):
    help = "Draw a key for SGM_TOKEN_ENCRYPTION_KEYS, or encrypt everything with the first one there."

    def add_arguments(self, parser: ArgumentParser) -> None:
        commands = parser.add_subparsers(dest="command", required=True)
        commands.add_parser("new", help="print a new key")
        rotate = commands.add_parser(
            "rotate",
            help="encrypt with the first key what others encrypted; may be run at any time, and again",
        )
        rotate.add_argument(
            "--check", action="store_true", help="change nothing; tell whether the former keys may be dropped"
        )

    def handle(self, *args: Any, command: str, check: bool = False, **options: Any) -> None:
        if command == "new":
            self.stdout.write(Fernet.generate_key().decode())
            self.stderr.write(
                "Put it behind the present key in SGM_TOKEN_ENCRYPTION_KEYS and restart all processes of"
                " central; then before it, and restart them again; then run `encryption_key rotate`."
            )
        elif check:
            self._check()
        else:
            self._rotate()

    def _rotate(self) -> None:
        for progress in texts_reencrypt(COLUMNS):
            done = progress
        self.stdout.write(
            f"{done.seen} texts, {done.changed} of them encrypted anew, {done.overtaken} changed meanwhile."
        )
        if done.troubles:
            raise CommandError("\n".join([*done.troubles, "They stay as they are. Is a key missing?"]))
        self._check()

    def _check(self) -> None:
        found = texts_under_former_keys(COLUMNS)
        former = len(settings.SGM_TOKEN_ENCRYPTION_KEYS) - 1
        if found.changed:
            verdict = (
                f"Keep the former keys: {found.changed} of {found.seen} texts are not encrypted with the"
                " first key. Run `encryption_key rotate`."
            )
            raise CommandError("\n".join([*found.troubles, verdict]))
        self.stdout.write(
            f"All {found.seen} texts are encrypted with the first key; {former} former keys are not needed,"
            " once every process of central was restarted with this first key."
        )
