"""Make nodes with one device each at the demo's second site; prints tenant, node and tag of each as JSON."""

from __future__ import annotations

import json
import sys

import django

django.setup()

from bench.system import GAPLESS, SITE_B  # noqa: E402 - models are there after setup
from devices_app.models import Device  # noqa: E402
from devices_app.services import device_create  # noqa: E402
from sites_app.models import Site  # noqa: E402
from sites_app.services import node_create  # noqa: E402


def main(count: int) -> None:
    site = Site.objects.get(pk=SITE_B)
    template = Device.objects.select_related("device_type").get(site=site, device_tag=GAPLESS)
    made = []
    for number in range(count):
        node = node_create(site=site, name=f"silent-{number:02d}")
        device = device_create(
            node=node,
            device_type=template.device_type,
            device_tag=f"SILENT_{number:02d}",
            modbus_server_host="127.0.0.1",
            modbus_server_port=40_000 + number,
            modbus_id=1,
            peak_power_kw=50.0,
        )
        made.append((node.tenant_tag, str(node.pk), device.device_tag))
    print(json.dumps(made))


if __name__ == "__main__":
    main(int(sys.argv[1]))
