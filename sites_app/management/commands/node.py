"""`manage.py node`: the identity of nodes, from the first token to the end."""

from __future__ import annotations

import getpass
from argparse import ArgumentParser
from typing import Any
from uuid import UUID

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from sites_app import identity
from sites_app.enrolment_command import enrolment_commands
from sites_app.models import Node
from sites_app.revocation import revocations_enforce
from smartgrid.errors import SgmError


class Command(BaseCommand):
    help = "Enrol nodes, have them renew their certificates, revoke them, show what they have."

    def add_arguments(self, parser: ArgumentParser) -> None:
        commands = parser.add_subparsers(dest="command", required=True)
        for name, text in (
            ("enroll", "print a one-time token, good for 24 h"),
            ("rotate", "have the node renew its certificate now"),
            ("revoke", "end the node's certificates and tokens, and its session at the broker"),
            ("certificates", "show the node's certificates"),
        ):
            command = commands.add_parser(name, help=text)
            command.add_argument("node", help="the node's name or id")
            command.add_argument("--tenant", help="where several tenants have a node of this name")
            if name == "revoke":
                command.add_argument("--reason", default="", help="kept with the certificates")

    def handle(self, *args: Any, command: str, node: str, tenant: str | None, **options: Any) -> None:
        found = _find(node, tenant)
        try:
            getattr(self, f"_{command}")(found, **options)
        except SgmError as error:
            raise CommandError(error.detail) from error

    def _enroll(self, node: Node, **_: Any) -> None:
        commands = enrolment_commands(node=node, now=timezone.now(), by=_operator())
        self.stdout.write(
            f"Good once, until {commands.expires_at:%Y-%m-%d %H:%M}Z, and not shown again. At the site, as\n"
            f"the user that runs the node:\n\n  {commands.enrol}\n  {commands.run}\n"
        )

    def _rotate(self, node: Node, **_: Any) -> None:
        identity.node_rotate(node=node, now=timezone.now(), by=_operator())
        self.stdout.write(f"{node.name} renews its certificate within a minute of hearing of it.")

    def _revoke(self, node: Node, *, reason: str, **_: Any) -> None:
        ended = identity.node_revoke(node=node, now=timezone.now(), reason=reason, by=_operator())
        self.stdout.write(f"{node.name}: {ended} certificates revoked, all its tokens void.")
        done = revocations_enforce(now=timezone.now())
        if str(node.pk) in done.waiting:
            raise CommandError(
                f"It is NOT certain that {node.name} is shut out: {done.why}. Let the broker have"
                " the files of"
                f" {identity.ca_directory()}/broker and reload it (SIGHUP), then repeat this command."
            )
        self.stdout.write("It is shut out: the broker refuses its certificates, and its session is ended.")

    def _certificates(self, node: Node, **_: Any) -> None:
        now = timezone.now()
        for row in node.certificates.order_by("-issued_at"):
            if row.revoked_at is not None:
                state = f"revoked {row.revoked_at:%Y-%m-%d %H:%M}Z: {row.reason}"
                state += "" if row.evicted_at else "; may still have a session at the broker"
            elif row.not_after <= now:
                state = "lapsed"
            else:
                state = (
                    f"in use since {row.confirmed_at:%Y-%m-%d %H:%M}Z"
                    if row.confirmed_at
                    else "not seen in use"
                )
            self.stdout.write(
                f"{row.serial}  issued {row.issued_at:%Y-%m-%d %H:%M}Z, until {row.not_after:%Y-%m-%d}"
                f"  {state}"
            )
        if not node.certificates.exists():
            self.stdout.write(f"{node.name} has no certificates. `manage.py node enroll {node.name}` begins.")


def _find(name: str, tenant: str | None) -> Node:
    try:
        nodes = Node.objects.filter(pk=UUID(name))
    except ValueError:
        nodes = Node.objects.filter(name=name)
    if tenant is not None:
        nodes = nodes.filter(tenant_tag=tenant)
    found = list(nodes[:2])
    if not found:
        raise CommandError(f"There is no node {name!r}.")
    if len(found) > 1:
        raise CommandError(f"Several tenants have a node {name!r}: name one with --tenant.")
    return found[0]


def _operator() -> str:
    """Who gave the command, for the log."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""
