"""The demo's fleet as a table: the API guide's own objects under its ids, tags and names, and some more.

On site A the only `inverter` is SMA_STP60_01, because the guide's answer to a request for that category
names it alone. The other inverters stand on site B. Site C has one device of each type that A and B lack, so
that everything this software speaks can be looked at.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edge.profiles.loader import load_all
from edge.profiles.points import Protocol

TENANT = "tenant-123"
IOTHUB = "iothub-euw-polaris-engineering"
HOST = "127.0.0.1"
# The broker that devices speak MQTT to, as a site has one: not the one of the link.
DEVICES_BROKER = "devices-mqtt"
DEVICES_USER = "devices"
SWITCHBOARD = "simulators"
# Where the simulated OPC XML-DA servers listen; it is each maker's own.
XML_DA_PATH = "/XmlDa/Service.asmx"
PROFILES = load_all()


@dataclass(frozen=True, kw_only=True)
class DemoSite:
    id: str
    tag: str
    name: str
    node_id: str
    node_name: str


@dataclass(frozen=True, kw_only=True)
class DemoDevice:
    """`behaves_as` says what the simulator makes of it: as its category says where it is empty.

    `id` is the guide's where the guide has the device, else one that follows from the tag. A device that
    is `controlled_by` another is that one's child.
    """

    tag: str
    site: DemoSite
    profile: str
    category: str
    behaves_as: str = ""
    nameplate_kw: float
    unit: int = 1
    default_value: float = 100.0
    measured_only: bool = False
    controlled_by: str = ""
    guide_id: str = ""

    @property
    def id(self) -> str:
        return self.guide_id or str(uuid.uuid5(uuid.NAMESPACE_URL, f"smart-grid-manager/demo/{self.tag}"))

    @property
    def protocol(self) -> Protocol:
        return PROFILES[self.profile].protocol

    @property
    def has_port(self) -> bool:
        """Tell whether the node connects to the device itself, rather than to a broker or to nothing."""
        return not self.protocol.is_inside and self.protocol is not Protocol.MQTT

    def address(self, ports: Mapping[str, int], *, password: str) -> dict[str, Any]:
        """Where it is reached, as a device's fields; `password` is that of the devices' broker."""
        where: dict[str, Any]
        if self.protocol.is_inside:
            return {}
        if self.protocol is Protocol.MQTT:
            where = {
                "url": f"mqtt://{HOST}:{ports[DEVICES_BROKER]}",
                "username": DEVICES_USER,
                "password": password,
            }
        elif self.protocol.has_url:
            path = XML_DA_PATH if self.protocol is Protocol.XML_DA else ""
            where = {"url": f"http://{HOST}:{ports[f'device:{self.tag}']}{path}"}
        else:
            port = ports[f"device:{self.tag}"]
            where = {"modbus_server_host": HOST, "modbus_server_port": port, "modbus_id": self.unit}
        return where | {"parameters": self.parameters}

    @property
    def parameters(self) -> dict[str, float | str]:
        """What its profile leaves open to it: what it must say, and its own name on the shared broker."""
        asked = PROFILES[self.profile].parameters
        said = {
            name: parameter.example
            for name, parameter in asked.items()
            if parameter.default is None and parameter.example is not None
        }
        return said | ({"device": self.tag.lower()} if "device" in asked else {})


@dataclass(frozen=True, kw_only=True)
class DemoLoop:
    """A closed loop of the demo, by the tags of its meter and members."""

    id: str
    tag: str
    site: DemoSite
    meter: str
    members: tuple[str, ...]
    setpoint_kw: float


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
SITE_C = DemoSite(
    id="5c1d9c0e-7b0a-4f52-9a39-3f6f0b8f2c11",
    tag="one_of_each",
    name="One Of Each Type",
    node_id="3e4f5a6b-7c8d-4e9f-8a1b-2c3d4e5f6a7b",
    node_name="node-03",
)
# `guide`: without one of each type, for measurements and machines with little room.
WHOLE, GUIDE = "whole", "guide"
FLEETS = (WHOLE, GUIDE)
IS_WHOLE = os.environ.get("SGM_DEMO_FLEET") != GUIDE
SITES = (SITE_A, SITE_B, SITE_C) if IS_WHOLE else (SITE_A, SITE_B)

BY_HAND = (
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
    # Two that follow one.
    DemoDevice(
        tag="PROXY_DEVICE_01",
        site=SITE_C,
        profile="proxy_device",
        category="inverter",
        nameplate_kw=90,
    ),
    DemoDevice(
        tag="DEMO_INVERTER_01",
        site=SITE_C,
        profile="demo_inverter",
        category="inverter",
        nameplate_kw=60,
        controlled_by="PROXY_DEVICE_01",
    ),
    DemoDevice(
        tag="DEMO_INVERTER_02",
        site=SITE_C,
        profile="demo_inverter",
        category="inverter",
        nameplate_kw=30,
        controlled_by="PROXY_DEVICE_01",
    ),
)

# What a device of a category is rated in the demo, in kW; a meter sees all of the site.
NAMEPLATES_KW = {
    "inverter": 60.0,
    "battery": 50.0,
    "wind_turbine": 500.0,
    "ev_charger": 22.0,
    "generator": 200.0,
    "heat_pump": 12.0,
    "load": 80.0,
    "meter": 2000.0,
}


def _one_of_each(by_hand: tuple[DemoDevice, ...]) -> tuple[DemoDevice, ...]:
    """A device at site C of every profile that has none yet."""
    there = {device.profile for device in by_hand}
    tags = {device.tag for device in by_hand}
    return tuple(
        DemoDevice(
            tag=f"{profile.name.upper()}_{'02' if f'{profile.name.upper()}_01' in tags else '01'}",
            site=SITE_C,
            profile=profile.name,
            category=str(profile.category),
            nameplate_kw=NAMEPLATES_KW.get(profile.category, 50.0),
            unit=profile.default_unit,
            default_value=profile.default_value,
            measured_only=not profile.controllable,
        )
        for profile in PROFILES.values()
        if profile.name not in there
    )


DEVICES = tuple(device for device in (*BY_HAND, *_one_of_each(BY_HAND)) if device.site in SITES)

# Over the plant that lives in the third node itself: nothing that guide and README print depends on it.
LOOPS = tuple(
    loop
    for loop in (
        DemoLoop(
            id="6d2e0f1a-8c3b-4a5d-9e7f-1b2c3d4e5f60",
            tag="DEMO_CONNECTION",
            site=SITE_C,
            meter="DEMO_METER_01",
            members=("DEMO_WIND_TURBINE_01", "PROXY_DEVICE_01"),
            # Reached in much wind with little load.
            setpoint_kw=250,
        ),
    )
    if loop.site in SITES
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
    return tuple(
        f"{kind}:{device.tag}"
        for device in DEVICES
        if not device.protocol.is_inside
        for kind in (("device", "observe") if device.has_port else ("observe",))
    )


def simulated_fleet(ports: Mapping[str, int], *, password: str) -> dict[str, Any]:
    """What `python -m edge simulate` is to run; `password` is that of the devices' broker."""
    return {
        "control_port": ports[SWITCHBOARD],
        "devices": [
            _simulated(device, ports, password=password)
            for device in DEVICES
            if not device.protocol.is_inside
        ],
    }


def _simulated(device: DemoDevice, ports: Mapping[str, int], *, password: str) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "tag": device.tag,
        "profile": device.profile,
        "host": HOST,
        "port": ports.get(f"device:{device.tag}", 0),
        "unit": device.unit,
        "observe_port": ports[f"observe:{device.tag}"],
        "nameplate_kw": device.nameplate_kw,
        "behaves_as": device.behaves_as or None,
        "site": device.site.tag,
        "parameters": device.parameters,
    }
    if device.protocol is Protocol.MQTT:
        address = device.address(ports, password=password)
        entry |= {name: address[name] for name in ("url", "username", "password")}
    if device.protocol is Protocol.MODBUS_RTU:
        # A line of its own, behind a serial device server.
        entry["line"] = device.tag
    return entry
