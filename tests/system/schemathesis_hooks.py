"""What schemathesis must know of the system that it judges, and no description can say.

Loaded by schemathesis itself, which imports nothing of ours. It narrows what is drawn and says which answers
are right although a rule of thumb calls them wrong; it switches off no check.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import schemathesis

# Nobody plans a day that is over, which no schema can say: days are to come.
DAYS = [(datetime.now(UTC) + timedelta(days=number)).strftime("%Y-%m-%d") for number in range(30, 42)]
# Of a history, which begins before it ends.
MOMENTS = {
    name: (datetime.now(UTC) - timedelta(hours=hours)).strftime("%Y-%m-%dT%H:%M:%SZ")
    for name, hours in (("from", 2), ("to", 1))
}
PRINTED_DAYS = {"2024-08-05": DAYS[0], "2024-08-06": DAYS[1]}


@schemathesis.hook
def before_load_schema(context: schemathesis.HookContext, raw_schema: dict[str, Any]) -> None:
    """Say of this plant what is true of it alone: its devices take 0 to 100, and every site has inverters."""
    schemas = raw_schema["components"]["schemas"]
    schemas["CurtailCategoryInput"]["properties"]["value"] |= {"minimum": 0, "maximum": 100}
    for name in ("ScheduleCreateInput", "ScheduleReplaceInput"):
        slots = schemas[name]["properties"]["schedule"]
        slots["additionalProperties"] |= {"minimum": 0, "maximum": 100}
    schemas["ScheduleCreateInput"]["properties"] |= {
        "valid_on": {"type": "string", "enum": DAYS},
        "category": {"type": "string", "enum": ["inverter"]},
    }
    for parameter in raw_schema["paths"]["/v1/schedules/{day}/{category}"]["put"]["parameters"]:
        if parameter["name"] == "day":
            parameter["schema"] = {"type": "string", "enum": DAYS}
    for name in ("SiteInput", "SiteCreateInput", "PatchedSiteInput"):
        schemas[name]["properties"]["time_zone"] = {"type": "string", "enum": ["UTC", "Europe/Amsterdam"]}
    for path in ("/v1/devices/{device_id}/telemetry", "/v1/sites/{site_id}/telemetry"):
        for parameter in raw_schema["paths"][path]["get"]["parameters"]:
            if parameter["name"] in MOMENTS:
                parameter["schema"] = {"type": "string", "enum": [MOMENTS[parameter["name"]]]}
    for parameter in raw_schema["paths"]["/v1/devices/{device_id}/explain"]["get"]["parameters"]:
        if parameter["name"] == "at":
            # The reasons of a node reach back as far as it has run.
            parameter["schema"]["anyOf"] = [{"enum": ["-1s", "-2.5s"]}, *parameter["schema"]["anyOf"]]
    for path in ("/v1/sites/bulk", "/v1/nodes/bulk", "/v1/devices/bulk", "/v1/device-types/bulk"):
        # A thousand take seconds each time, for nothing that twenty do not show.
        if path in raw_schema["paths"]:
            content = raw_schema["paths"][path]["post"]["requestBody"]["content"]
            del content["application/json"]["schema"]["maxItems"]
    _move(raw_schema)


def _move(told: Any) -> None:
    """Turn the days of the guide's examples into days to come."""
    items = told.items() if isinstance(told, dict) else enumerate(told) if isinstance(told, list) else ()
    for key, value in items:
        if isinstance(value, str) and value in PRINTED_DAYS:
            told[key] = PRINTED_DAYS[value]
        else:
            _move(value)


# Refusals of requests which fit the description, by what they say, with why no schema can say it.
BEYOND_SCHEMAS = (
    " is over (UTC)",  # what today is
    "this site has no device to control of ",  # what stands at a site
    " is outside the range of ",  # what its devices take
    " is not a time zone",  # six hundred names, of which each release of the tz database has others
    "it must be before `to`",  # two parameters, against each other
    "must be less than curtailment_time_limit",  # likewise two fields
    "is too long ago: the ring reaches back to ",  # when a node began
    "is still to come; it is ",  # what time it is
    "is of another tenant",  # whose the site is
    "rintable characters are expected",  # each release of Unicode has others
    "A text in it cannot be stored",  # texts within an object whose names are its owner's
    "A number in it cannot be stored",
    "Objects and arrays at most ",
    "bytes of JSON are expected",
)


@schemathesis.hook
def filter_failure(
    context: schemathesis.HookContext,
    failure: Exception,
    case: schemathesis.Case[Any],
    response: schemathesis.Response,
) -> bool:
    """Tell whether a failure stands."""
    kind = type(failure).__name__
    if kind == "RejectedPositiveData" and response.status_code == 400:
        said = response.json()["detail"]
        return not any(part in said for part in BEYOND_SCHEMAS)
    if kind == "AcceptedNegativeData" and case.operation.path.endswith("/curtail-category"):
        # A value is judged against the devices it is for: where none of the tags is of the category, there is
        # none to judge it by, and the answer names each as `unknown_device`.
        result = response.json()["result"]
        found = bool(result["updated"])
        return found or not all(why.startswith("unknown_device") for why in result["not_updated"].values())
    return True
