"""`manage.py ca`: the private authority that vouches for the broker, for central and for nodes."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from sites_app import authority, identity
from sites_app.authority import BROKER, CENTRAL
from sites_app.revocation import revocations_enforce
from smartgrid.errors import SgmError
from smartgrid.mosquitto import tls_config

# Where mosquitto keeps retained messages on Debian.
BROKER_DATA = Path("/var/lib/mosquitto")


class Command(BaseCommand):
    help = "Make the private authority, renew what it issued, write what the broker must know."

    def add_arguments(self, parser: ArgumentParser) -> None:
        commands = parser.add_subparsers(dest="command", required=True)
        init = commands.add_parser("init", help="make it in SGM_CA_DIR, once")
        init.add_argument(
            "--host",
            action="append",
            required=True,
            help="a name or address that nodes or central reach the broker by; may be repeated",
        )
        init.add_argument(
            "--broker-files",
            type=Path,
            help="where the broker finds the files of SGM_CA_DIR/broker; default: right there",
        )
        server = commands.add_parser("renew-server", help="a new key and certificate for the broker")
        server.add_argument("--host", action="append", help="default: the names of the present one")
        service = commands.add_parser(
            "renew-central", help="new keys and certificates for central's processes"
        )
        service.add_argument("user", nargs="*", default=list(authority.SERVICES))
        commands.add_parser("replace-central", help="another authority for broker and central: a key leaked")
        commands.add_parser("crl", help="write what the broker must refuse, and see that it does")

    def handle(self, *args: Any, command: str, **options: Any) -> None:
        try:
            getattr(self, f"_{command.replace('-', '_')}")(**options)
        except SgmError as error:
            raise CommandError(error.detail) from error

    def _init(self, *, host: list[str], broker_files: Path | None, **_: Any) -> None:
        directory = identity.ca_directory()
        if directory == Path():
            raise CommandError("SGM_CA_DIR is not set: where is the authority to be?")
        files = (broker_files or directory / BROKER).absolute()
        configuration = tls_config(files=files, data=BROKER_DATA)
        authority.authority_make(
            directory=directory,
            hosts=host,
            now=timezone.now(),
            password=settings.SGM_CA_PASSWORD,
            broker_files={"mosquitto.conf": configuration},
        )
        self._crl()
        self.stdout.write(
            f"The authority is in {directory}. Back it up: without it no node can be enrolled or renewed.\n"
            f"  the broker's files      {directory / BROKER}\n"
            f"  central's certificates  {directory}/central-worker.pem, {directory}/central-inbox.pem\n"
            f"Put {directory}/central-ca.key away: only `ca renew-server` and `ca renew-central` need it.\n"
            "nodes-ca.key stays where web and worker run."
        )
        if not settings.SGM_CA_PASSWORD:
            self.stdout.write(
                "The keys are not encrypted (SGM_CA_PASSWORD is not set); only their owner reads them."
            )

    def _renew_server(self, *, host: list[str] | None, **_: Any) -> None:
        directory = identity.ca_directory()
        issued = authority.server_issue(
            directory=directory,
            root=self._central_root(),
            hosts=host or authority.server_hosts(directory),
            now=timezone.now(),
        )
        self.stdout.write(f"The broker's new certificate is good until {issued.not_after:%Y-%m-%d}.")
        self._crl()

    def _renew_central(self, *, user: list[str], **_: Any) -> None:
        for name in user:
            issued = authority.service_issue(
                directory=identity.ca_directory(), root=self._central_root(), user=name, now=timezone.now()
            )
            self.stdout.write(f"{name}: good until {issued.not_after:%Y-%m-%d}, taken up at its next connect")

    def _replace_central(self, **_: Any) -> None:
        directory = identity.ca_directory()
        authority.central_replace(directory=directory, now=timezone.now(), password=settings.SGM_CA_PASSWORD)
        self.stdout.write(
            f"Another central-ca vouches for broker, worker and inbox. Now carry {directory / BROKER} to the"
            " broker, RESTART it\n(a reload is not enough), and restart worker and inbox. Nodes follow by"
            f" themselves. Put {directory}/central-ca.key away."
        )

    def _central_root(self) -> authority.Root:
        return authority.root_load(identity.ca_directory(), CENTRAL, password=settings.SGM_CA_PASSWORD)

    def _crl(self, **_: Any) -> None:
        done = revocations_enforce(now=timezone.now())
        if done.waiting:
            raise CommandError(f"not in force for {', '.join(done.waiting)}: {done.why}")
        if not done.told:
            why = "failed" if settings.SGM_BROKER_RELOAD else "is not set"
            self.stdout.write(f"Have the broker read its files again (SIGHUP); SGM_BROKER_RELOAD {why}.")
        else:
            self.stdout.write("The broker was told." if done.changed else "The broker knows already.")
