"""edge.profiles -> DeviceType rows."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand

from devices_app.catalogue import shipped_types
from devices_app.services import device_types_sync


class Command(BaseCommand):
    help = "Bring the device types in line with the profiles of this version."

    def handle(self, *args: Any, **options: Any) -> None:
        done = device_types_sync(dict(shipped_types()))
        self.stdout.write(
            f"{len(done['created'])} device types created, {len(done['updated'])} updated, "
            f"{len(done['unchanged'])} unchanged, {len(done['without_profile'])} without a profile"
        )
        for unfit in done["unfit"]:
            self.stderr.write(f"does not fit its type any longer, and goes on as it was: {unfit}")
