"""`manage.py central_restored`: to be run once after the database was restored, before the workers start."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand

from sites_app.restoring import central_restored


class Command(BaseCommand):
    help = (
        "After a restore from a backup: give every node a higher epoch, in which it takes what the database"
        " says over all that it was told since the backup, and publish everything anew. Harmless twice."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        done = central_restored()
        if not done.nodes:
            self.stdout.write("There are no nodes: nothing to do.")
            return
        self.stdout.write(
            f"{done.nodes} nodes are given an epoch of {done.lowest_epoch} to {done.highest_epoch};"
            f" {done.documents} documents will be published anew by the workers, and are pending until the"
            " nodes have answered. What the nodes logged between the backup and now is lost, except what they"
            " have not sent yet."
        )
