"""What the running demo says of itself: `demo.json` for programs, a page of text for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smartgrid.demo.fleet import DEVICES, HOST, SITE_A, SWITCHBOARD
from smartgrid.demo.services import ADMIN_USERNAME, AUDIENCE, DemoSettings
from smartgrid.demo.state import write_private

FILE = "demo.json"


def description(
    settings: DemoSettings, *, mqtt_isolation: bool, pids: Mapping[str, int], protocols: Mapping[str, str]
) -> dict[str, Any]:
    """The content of `demo.json`; `protocols` says which protocol each profile speaks."""
    return {
        "api_url": f"{settings.base_url}/v1",
        "events_url": f"{settings.events_url}/v1/events",
        "admin_url": f"{settings.base_url}/admin/",
        "admin_username": ADMIN_USERNAME,
        "admin_password": settings.secrets["admin_password"],
        "token_url": f"{settings.base_url}/oauth/token",
        "audience": AUDIENCE,
        "client_id": settings.secrets["client_id"],
        "client_secret": settings.secrets["client_secret"],
        "root_token": settings.secrets["root_token"],
        "site_token": settings.secrets["site_token"],
        "site_token_sites": [SITE_A.id],
        "mqtt_url": settings.mqtt_url,
        "mqtt_isolation": mqtt_isolation,
        "redis_url": settings.redis_url,
        "database_url": settings.database_url,
        "issuer_key": settings.issuer_key.name,
        "simulators_url": f"http://{HOST}:{settings.ports[SWITCHBOARD]}",
        "devices": [
            {
                "device_tag": device.tag,
                "device_id": device.id,
                "site_id": device.site.id,
                "node_id": device.site.node_id,
                "category": device.category,
                "protocol": protocols.get(device.profile, ""),
                "profile": device.profile,
                "host": None if device.protocol.is_inside else HOST,
                "port": settings.ports.get(f"device:{device.tag}"),
                "unit": device.unit if device.protocol.is_modbus else None,
                "observe_port": settings.ports.get(f"observe:{device.tag}"),
            }
            for device in DEVICES
        ],
        "processes": dict(pids),
    }


def write_description(var: Path, content: Mapping[str, Any]) -> None:
    """Write `demo.json` whole; readable by its owner alone, since it holds every credential."""
    write_private(var / FILE, json.dumps(content, indent=2) + "\n")


def curl_lines(content: Mapping[str, Any]) -> str:
    """Shell lines that fetch a bearer token and curtail the inverters of site A, ready to be pasted."""
    body = json.dumps(
        {
            "audience": content["audience"],
            "grant_type": "client_credentials",
            "client_id": content["client_id"],
            "client_secret": content["client_secret"],
        }
    )
    return f"""\
TOKEN=$(curl -s -X POST "{content["token_url"]}" -H "Content-Type: application/json" \\
  -d '{body}' \\
  | sed 's/.*"access_token": *"\\([^"]*\\)".*/\\1/')
curl -s -X PUT "{content["api_url"]}/sites/{SITE_A.id}/curtail-category" \\
  -H "Authorization: Bearer $TOKEN" -H "X-Management-Token: {content["site_token"]}" \\
  -H "Content-Type: application/json" -d '{{"value": 50, "category": "inverter"}}'
"""


def for_people(content: Mapping[str, Any], *, var: Path, time_limit_s: int) -> str:
    sma = content["devices"][0]
    observed = f"{sma['host']}:{sma['observe_port']}, unit {sma['unit']}"
    return f"""
Smart Grid Manager runs.

  API        {content["api_url"]}
  console    {content["admin_url"]}   user {content["admin_username"]}, password {content["admin_password"]}
             without a second factor: SGM_CONSOLE_SECOND_FACTOR is off here
  root token {content["root_token"]}
  site token {content["site_token"]}   (opens {SITE_A.tag})
  MQTT       {content["mqtt_url"]}
  all this, for programs: {var / FILE}; logs: {var / "log"}

Curtail the inverters of {SITE_A.tag} to 50 %, for {time_limit_s} s:

{curl_lines(content)}
Any Modbus client can watch {sma["device_tag"]}, read-only: {observed}.
Break a simulated device: PUT {content["simulators_url"]}/devices/TAG/fault {{"fault": "silent"}}.

Ctrl-C ends everything.
"""
