"""edge.profiles -> DeviceType rows."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand

from devices_app.services import DeviceTypeFields, device_types_sync
from edge.profiles.loader import load_all, load_bodies


class Command(BaseCommand):
    help = "Bring the device types in line with the profiles of this version."

    def handle(self, *args: Any, **options: Any) -> None:
        profiles: dict[str, tuple[str, DeviceTypeFields]] = {}
        bodies = load_bodies()
        for profile in load_all().values():
            profiles[profile.name] = (
                profile.title,
                {
                    "category": str(profile.category),
                    "protocol": str(profile.protocol),
                    "value_kind": None if profile.value_kind is None else str(profile.value_kind),
                    "min_value": profile.min_value,
                    "max_value": profile.max_value,
                    "default_value": profile.default_value,
                    "verified_on_hardware": profile.verified_on_hardware,
                    "profile_body": bodies[profile.name],
                },
            )
        done = device_types_sync(profiles)
        self.stdout.write(
            f"{len(done['created'])} device types created, {len(done['updated'])} updated, "
            f"{len(done['unchanged'])} unchanged, {len(done['without_profile'])} without a profile"
        )
        for unfit in done["unfit"]:
            self.stderr.write(f"does not fit its type any longer, and goes on as it was: {unfit}")
