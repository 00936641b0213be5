"""`manage.py root_token`: draws what opens everything."""

from __future__ import annotations

import os
import secrets
from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand


class Command(BaseCommand):
    help = "Draw a root token. It is printed and kept nowhere: docs/credentials.md says where it goes."

    def add_arguments(self, parser: ArgumentParser) -> None:
        commands = parser.add_subparsers(dest="command", required=True)
        commands.add_parser("new", help="print a new token, to stand beside the present ones for a while")

    def handle(self, *args: Any, **options: Any) -> None:
        # The token alone on standard output, so that it can be piped to where it belongs.
        self.stdout.write(f"root_{secrets.token_hex(16)}")
        present = len(settings.SGM_ROOT_TOKENS)
        place = os.environ.get("SGM_ROOT_TOKENS_FILE", "")
        where = f"as a further line in {place}" if place else "behind a comma in SGM_ROOT_TOKENS"
        self.stderr.write(
            f"Put it {where}, where {present} stand now, and restart the processes of the API: all are good"
            " then. Take the old one out once nobody sends it any more."
        )
