"""The demo's fleet as a table: the API guide's own objects under its ids, tags and names, and some more.

On site A the only `inverter` is SMA_STP60_01, because the guide's answer to a request for that category
names it alone. The other inverters stand on site B.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

TENANT = "tenant-123"
IOTHUB = "iothub-euw-polaris-engineering"
HOST = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class DemoSite:
    id: str
    tag: str
    name: str
    node_id: str
    node_name: str


@dataclass(frozen=True, kw_only=True)
class DemoDevice:
    """`behaves_as` says what the simulator makes of it: pv, battery, wind, charger or meter.

    `id` is the guide's where the guide has the device, else one that follows from the tag.
    """

    tag: str
    site: DemoSite
    profile: str
    category: str
    behaves_as: str
    nameplate_kw: float
    unit: int = 1
    default_value: float = 100.0
    measured_only: bool = False
    guide_id: str = ""

    @property
    def id(self) -> str:
        return self.guide_id or str(uuid.uuid5(uuid.NAMESPACE_URL, f"smart-grid-manager/demo/{self.tag}"))


SITE_A = DemoSite(
    id="01751407-d87b-4d89-b47f-cca4dfb85a92",
    tag="solarpanel_site_a",
    name="Solar Panel Site A",
    node_id="14b3c7a0-5e9d-4f21-bd8a-6c1e2d3f4a5b",
    node_name="node-01",
)
SITE_B = DemoSite(
    id="85a2dfb4-cca4-47fb-89bd-87b4d7014751",
    tag="solarpanel_site_b",
    name="Solar Panel Site B",
    node_id="2d3f4a5b-6c1e-bd8a-4f21-5e9d14b3c7a0",
    node_name="node-02",
)
SITES = (SITE_A, SITE_B)

DEVICES = (
    DemoDevice(
        tag="SMA_STP60_01",
        guide_id="a5b6c7d8-e9f0-1a2b-3c4d-5e6f7a8b9c0d",
        site=SITE_A,
        profile="sma_stp60_im20",
        category="inverter",
        behaves_as="pv",
        nameplate_kw=60,
        # The unit of the plant behind an Inverter Manager.
        unit=125,
    ),
    DemoDevice(
        tag="IWELL_BATTERY_01",
        guide_id="b6c7d8e9-f01a-2b3c-4d5e-6f7a8b9c0d1e",
        site=SITE_A,
        profile="generic_modbus_battery",
        category="battery",
        behaves_as="battery",
        nameplate_kw=30,
    ),
    DemoDevice(
        tag="WIND_TURBINE_01",
        guide_id="c7d8e9f0-1a2b-3c4d-5e6f-7a8b9c0d1e2f",
        site=SITE_A,
        profile="generic_modbus_wind",
        category="wind_turbine",
        behaves_as="wind",
        nameplate_kw=250,
    ),
    DemoDevice(
        tag="EV_CHARGER_01",
        guide_id="d8e9f01a-2b3c-4d5e-6f7a-8b9c0d1e2f3a",
        site=SITE_A,
        profile="generic_modbus_charger",
        category="ev_charger",
        behaves_as="charger",
        nameplate_kw=22,
        default_value=80,
    ),
    DemoDevice(
        tag="METER_SITE_A",
        site=SITE_A,
        profile="janitza_umg604",
        category="meter",
        behaves_as="meter",
        nameplate_kw=400,
        measured_only=True,
    ),
    DemoDevice(
        tag="SUNGROW_SG110CX_01",
        site=SITE_B,
        profile="sungrow_sg110cx",
        category="inverter",
        behaves_as="pv",
        nameplate_kw=110,
    ),
    DemoDevice(
        tag="GROWATT_MAX_01",
        site=SITE_B,
        profile="growatt_max_60ktl",
        category="inverter",
        behaves_as="pv",
        nameplate_kw=60,
    ),
    # Without a pause between two commands: on this one the latency of the whole path is measured.
    DemoDevice(
        tag="GENERIC_PV_01",
        site=SITE_B,
        profile="generic_modbus",
        category="inverter",
        behaves_as="pv",
        nameplate_kw=50,
    ),
    DemoDevice(
        tag="METER_SITE_B",
        site=SITE_B,
        profile="janitza_umg604",
        category="meter",
        behaves_as="meter",
        nameplate_kw=250,
        measured_only=True,
    ),
)

# The guide's ids of the types of its own devices, by profile.
GUIDE_DEVICE_TYPES = {
    "sma_stp60_im20": "9c0d8b7a-6f5e-4d3c-2b1a-0f9e8d7c6b5a",
    "generic_modbus_battery": "8b7a6f5e-4d3c-2b1a-0f9e-8d7c6b5a4b3c",
    "generic_modbus_wind": "7a6f5e4d-3c2b-1a0f-9e8d-7c6b5a4b3c2d",
    "generic_modbus_charger": "6f5e4d3c-2b1a-0f9e-8d7c-6b5a4b3c2d1e",
}


def port_names() -> tuple[str, ...]:
    """The names under which the demo's ports of simulated devices are kept."""
    return tuple(f"{kind}:{device.tag}" for device in DEVICES for kind in ("device", "observe"))


def simulated_fleet(ports: dict[str, int]) -> dict[str, Any]:
    """What `python -m edge simulate` is to run."""
    return {
        "devices": [
            {
                "tag": device.tag,
                "profile": device.profile,
                "host": HOST,
                "port": ports[f"device:{device.tag}"],
                "unit": device.unit,
                "observe_port": ports[f"observe:{device.tag}"],
                "nameplate_kw": device.nameplate_kw,
                "behaves_as": device.behaves_as,
                "site": device.site.tag,
            }
            for device in DEVICES
        ]
    }
