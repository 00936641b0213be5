"""`manage.py token_hash`: a new key for the digests by which management tokens are found."""

from __future__ import annotations

import secrets
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from sites_app.rotation import token_digests_renew, token_digests_under_other_keys


class Command(BaseCommand):
    help = "Draw a key for SGM_TOKEN_HASH_KEY, or digest all management tokens with the one there."

    def add_arguments(self, parser: ArgumentParser) -> None:
        commands = parser.add_subparsers(dest="command", required=True)
        commands.add_parser("new", help="print a new key")
        rotate = commands.add_parser(
            "rotate", help="digest all tokens with SGM_TOKEN_HASH_KEY; may be run at any time, and again"
        )
        rotate.add_argument(
            "--check",
            action="store_true",
            help="change nothing; tell whether SGM_TOKEN_HASH_KEY_OTHER is needed",
        )
        rotate.add_argument(
            "--lost",
            action="store_true",
            help="also tokens that neither key finds: they open their sites again",
        )

    def handle(
        self, *args: Any, command: str, check: bool = False, lost: bool = False, **options: Any
    ) -> None:
        if command == "new":
            self.stdout.write(secrets.token_hex(32))
            self.stderr.write(
                "Put it into SGM_TOKEN_HASH_KEY_OTHER and restart all processes of central; then exchange the"
                " two keys, and restart them again; then run `token_hash rotate`."
            )
        elif check:
            self._check()
        else:
            self._rotate(take_lost=lost)

    def _rotate(self, *, take_lost: bool) -> None:
        for progress in token_digests_renew(take_lost=take_lost):
            done = progress
        self.stdout.write(
            f"{done.seen} tokens, {done.changed} of them digested anew, {done.overtaken} changed meanwhile."
        )
        if done.troubles:
            raise CommandError(
                "\n".join(
                    [*done.troubles, "They stay as they are. Is SGM_TOKEN_HASH_KEY_OTHER the former key?"]
                )
            )

    def _check(self) -> None:
        found = token_digests_under_other_keys()
        if found.changed or found.troubles:
            verdict = (
                f"Keep SGM_TOKEN_HASH_KEY_OTHER: {found.changed} of {found.seen} tokens are not digested with"
                " SGM_TOKEN_HASH_KEY."
            )
            raise CommandError("\n".join([*found.troubles, verdict]))
        self.stdout.write(
            f"All {found.seen} tokens are digested with SGM_TOKEN_HASH_KEY; SGM_TOKEN_HASH_KEY_OTHER is not"
            " needed, once every process of central was restarted with this key."
        )
