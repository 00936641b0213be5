"""Who may do what below /v1: one row for each method of each path. `test_scope_matrix.py` tries them all.

To add an operation, add its row. That is all: what is in its path is tried as the holder's own, as somebody
else's and as something that does not exist. A row says

- `who`: `ANY` management token, `ROOT` tokens alone (others are told 403 before anything about objects), or
  `NOBODY` in particular (no credentials needed);
- `body`: what to send, made of a side (`Ids`), so that it can be sent with the caller's own objects, with
  foreign and with absent ones. A body that names no object is the same for all;
- `status`: the answer to somebody who may, 200 unless said;
- `shows`: which of a side's ids stand in that answer. A foreign one must stand in none;
- `filters`: query parameters that narrow a list to an object, and by which of a side's ids: a foreign one
  finds what an absent one does, nothing;
- `chooses`: query parameters that choose an object: a foreign one is 404, as an absent one is;
- `given`: which of a side's ids a parameter of the path takes, where it is not called as that is;
- `query`: what the request carries beside;
- `needs_redis`: whether it cannot be answered without.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Who(Enum):
    """Which management tokens a function is for."""

    ANY = "any"
    ROOT = "root"
    NOBODY = "nobody"


ANY, ROOT, NOBODY = Who.ANY, Who.ROOT, Who.NOBODY


@dataclass(frozen=True)
class Ids:
    """What one side has, as it stands in paths and bodies. Parameters of paths are called as these are."""

    site_id: str
    site_tag: str
    node_id: str
    node_name: str
    device_id: str
    device_tag: str
    schedule_id: str
    token_id: str
    log_id: str
    meter_id: str
    # Of another meter.
    loop_id: str
    # Nothing belongs to these, so they can be deleted.
    bare_site_id: str
    bare_node_id: str
    # These belong to nobody.
    device_type_id: str
    day: str
    free_day: str
    category: str = "inverter"


@dataclass(frozen=True)
class Row:
    """What is expected of one operation; see the top of this module."""

    method: str
    path: str
    who: Who = ANY
    body: Callable[[Ids], Any] | None = None
    status: int = 200
    shows: tuple[str, ...] = ()
    filters: Mapping[str, str] = field(default_factory=dict)
    chooses: Mapping[str, str] = field(default_factory=dict)
    given: Mapping[str, str] = field(default_factory=dict)
    query: str = ""
    needs_redis: bool = False

    @property
    def name(self) -> str:
        return f"{self.method} /v1/{self.path}"


SLOTS = {"09:00": 50}
GIVEN_TYPE = {"name": "Given", "profile": "generic_modbus"}


def given_node(ids: Ids) -> dict[str, Any]:
    return {"site_id": ids.site_id, "polaris_node_name": "given"}


def given_device(ids: Ids) -> dict[str, Any]:
    return {
        "node_id": ids.node_id,
        "device_type_id": ids.device_type_id,
        "device_tag": "GIVEN_01",
        "modbus_server_host": "192.0.2.77",
        "modbus_server_port": 502,
        "modbus_id": 7,
    }


def given_loop(ids: Ids) -> dict[str, Any]:
    return {"loop_tag": "GIVEN", "meter_id": ids.meter_id, "category": ids.category}


ROWS = (
    Row("GET", "openapi.json", NOBODY),
    Row("GET", "docs", NOBODY),
    Row("GET", "ping"),
    Row("GET", "version"),
    # --- management tokens
    Row("GET", "auth-tokens", ROOT, shows=("token_id",), filters={"site_id": "site_id"}),
    Row(
        "POST",
        "auth-tokens",
        ROOT,
        body=lambda ids: {"name": "Given", "sites": [ids.site_id]},
        shows=("site_id",),
    ),
    Row("GET", "auth-tokens/<uuid:token_id>", ROOT, shows=("token_id", "site_id")),
    Row(
        "PUT",
        "auth-tokens/<uuid:token_id>",
        ROOT,
        body=lambda ids: {"name": "Given", "sites": [ids.site_id]},
        shows=("token_id", "site_id"),
    ),
    Row("DELETE", "auth-tokens/<uuid:token_id>", ROOT, status=204),
    # --- sites
    Row("GET", "sites", shows=("site_id",)),
    Row("GET", "sites/<uuid:site_id>", shows=("site_id",)),
    Row("GET", "site-health-report", shows=("site_tag", "node_name"), needs_redis=True),
    Row("GET", "sites/<uuid:site_id>/telemetry", query="?resolution=raw", shows=("device_id",)),
    # --- nodes
    Row("GET", "nodes", shows=("node_id", "site_id"), filters={"site_id": "site_id"}),
    Row("GET", "nodes/<uuid:node_id>", shows=("node_id", "site_id")),
    Row("GET", "sites/<uuid:site_id>/nodes", shows=("node_id",), filters={"site_id": "site_id"}),
    # --- devices
    Row("GET", "devices", shows=("device_id",), filters={"site_id": "site_id", "node_id": "node_id"}),
    Row("GET", "devices/<uuid:device_id>", shows=("device_id",)),
    Row("GET", "sites/<uuid:site_id>/devices", shows=("device_id",), filters={"node_id": "node_id"}),
    Row(
        "GET",
        "sites/<uuid:site_id>/nodes/<uuid:node_id>/devices",
        shows=("device_id",),
        filters={"site_id": "site_id"},
    ),
    Row("GET", "sites/<uuid:site_id>/device-categories", shows=("device_id",)),
    Row("GET", "devices/<uuid:device_id>/telemetry", query="?resolution=raw", shows=("device_id",)),
    # Its node is not there to be asked, which is only said of a device that may be seen.
    Row("GET", "devices/<uuid:device_id>/explain", status=409, needs_redis=True),
    # --- provisioning
    Row("POST", "sites", ROOT, body=lambda _: {"site_tag": "given", "name": "Given"}),
    Row("POST", "sites/bulk", ROOT, body=lambda _: [{"site_tag": "given", "name": "Given"}]),
    Row("GET", "sites/<uuid:site_id>/settings", ROOT, shows=("site_id",)),
    Row(
        "PUT",
        "sites/<uuid:site_id>",
        ROOT,
        body=lambda _: {"site_tag": "given", "name": "Given"},
        shows=("site_id",),
    ),
    Row("PATCH", "sites/<uuid:site_id>", ROOT, body=lambda _: {"name": "Given"}, shows=("site_id",)),
    Row("DELETE", "sites/<uuid:site_id>", ROOT, given={"site_id": "bare_site_id"}),
    Row("POST", "nodes", ROOT, body=given_node, shows=("site_id",)),
    Row("POST", "nodes/bulk", ROOT, body=lambda ids: [given_node(ids)], shows=("site_id",)),
    Row("GET", "nodes/<uuid:node_id>/settings", ROOT, shows=("node_id", "site_id")),
    Row("PUT", "nodes/<uuid:node_id>", ROOT, body=given_node, shows=("node_id", "site_id")),
    Row(
        "PATCH",
        "nodes/<uuid:node_id>",
        ROOT,
        body=lambda ids: {"site_id": ids.site_id},
        shows=("node_id", "site_id"),
    ),
    Row("DELETE", "nodes/<uuid:node_id>", ROOT, given={"node_id": "bare_node_id"}),
    Row("POST", "devices", ROOT, body=given_device, shows=("node_id", "device_type_id")),
    Row("POST", "devices/bulk", ROOT, body=lambda ids: [given_device(ids)], shows=("node_id",)),
    Row("GET", "devices/<uuid:device_id>/settings", ROOT, shows=("device_id", "node_id")),
    Row("PUT", "devices/<uuid:device_id>", ROOT, body=given_device, shows=("device_id", "node_id")),
    Row(
        "PATCH",
        "devices/<uuid:device_id>",
        ROOT,
        body=lambda ids: {"node_id": ids.node_id, "telemetry_s": 20},
        shows=("device_id", "node_id"),
    ),
    Row("DELETE", "devices/<uuid:device_id>", ROOT),
    Row("GET", "device-types", shows=("device_type_id",)),
    Row("POST", "device-types", ROOT, body=lambda _: GIVEN_TYPE),
    Row("POST", "device-types/bulk", ROOT, body=lambda _: [GIVEN_TYPE]),
    Row("GET", "device-types/<uuid:device_type_id>", shows=("device_type_id",)),
    Row("PUT", "device-types/<uuid:device_type_id>", ROOT, body=lambda _: {"name": "Given"}),
    Row("PATCH", "device-types/<uuid:device_type_id>", ROOT, body=lambda _: {"lifetime": "singular"}),
    # Devices of both sides are of this type.
    Row("DELETE", "device-types/<uuid:device_type_id>", ROOT, status=409),
    # --- closed loops
    Row(
        "GET",
        "sites/<uuid:site_id>/loops",
        shows=("site_id", "node_id", "loop_id"),
        filters={"node_id": "node_id"},
    ),
    Row(
        "POST",
        "sites/<uuid:site_id>/loops",
        ROOT,
        body=given_loop,
        shows=("site_id", "node_id", "meter_id", "device_id"),
    ),
    Row("GET", "loops/<uuid:loop_id>", shows=("site_id", "node_id", "loop_id")),
    Row("PUT", "loops/<uuid:loop_id>", ROOT, body=given_loop, shows=("loop_id", "meter_id")),
    Row("PATCH", "loops/<uuid:loop_id>", ROOT, body=lambda _: {"kp": 0.5}, shows=("loop_id",)),
    Row("DELETE", "loops/<uuid:loop_id>", ROOT),
    # --- schedules
    Row("GET", "schedules", shows=("schedule_id",), filters={"site_id": "site_id"}),
    Row(
        "POST",
        "schedules",
        body=lambda ids: {
            "site_id": ids.site_id,
            "category": ids.category,
            "valid_on": ids.free_day,
            "schedule": SLOTS,
        },
        shows=("site_id",),
    ),
    Row("DELETE", "schedules/<str:day_or_id>", given={"day_or_id": "schedule_id"}),
    Row(
        "GET",
        "schedules/<str:day_or_id>",
        given={"day_or_id": "day"},
        shows=("schedule_id",),
        filters={"site_id": "site_id"},
    ),
    Row(
        "PUT",
        "schedules/<str:day>/<str:category>",
        body=lambda ids: {"site_id": ids.site_id, "schedule": SLOTS},
        shows=("schedule_id",),
    ),
    Row("GET", "sites/<uuid:site_id>/schedules", shows=("schedule_id",), filters={"site_id": "site_id"}),
    Row("GET", "sites/<uuid:site_id>/schedules/<str:day>", shows=("schedule_id",)),
    # --- control and logs
    Row(
        "PUT",
        "sites/<uuid:site_id>/curtail-category",
        body=lambda _: {"value": 50, "category": "inverter"},
        shows=("device_tag",),
        needs_redis=True,
    ),
    Row(
        "POST",
        "sites/<uuid:site_id>/release",
        body=lambda _: {"category": "inverter"},
        shows=("device_tag",),
        needs_redis=True,
    ),
    Row("GET", "logs", shows=("log_id",)),
    Row("GET", "sites/<uuid:site_id>/logs", shows=("log_id",)),
    # No process tells events here, which is only said of a site that may be seen.
    Row("GET", "events", status=503, chooses={"site_id": "site_id"}),
    Row("GET", "device-error-logs", shows=("site_id", "device_tag")),
)
