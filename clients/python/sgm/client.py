"""The API as a Python object."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from sgm.asking import PAGE, Api, json_of, part, present
from sgm.bearer import cache_directory
from sgm.decoding import decode, decode_list
from sgm.errors import Ambiguous, AnswerInvalid, ArgumentInvalid, NotFound
from sgm.events import Event
from sgm.http import ANSWER_S
from sgm.models import (
    ControlAnswer,
    ControlLog,
    Device,
    DeviceType,
    Explanation,
    Loop,
    ManagementToken,
    Node,
    NodeHealth,
    Schedule,
    Site,
    SiteErrors,
    Telemetry,
    Version,
)
from sgm.repeats import Patience
from sgm.settings import Settings, settings_load

Unit = Literal["percent", "kw"]
Resolution = Literal["raw", "15m", "1h", "1d"]
Slots = Mapping[str, float | None]


class Client:
    """Asks one API with one pair of credentials; for any number of threads. Close it, or use it as a context.

        with Client() as sgm:
            for site in sgm.sites():
                print(site.name)
            answer = sgm.curtail(site.id, category="inverter", value=50)

    Without settings: those of `sgm.settings.settings_load()`. Every method may raise `ApiError` (the API
    refused), `Unreachable` (nobody answered), `TokenRefused` and `AnswerInvalid`; all are `SgmError`. What
    can be sent again without harm is (`sgm.repeats`).
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        answer_s: float = ANSWER_S,
        cache: Path | None = None,
        keeps_token: bool = True,
        patience: Callable[[], Patience] = Patience,
        page: int = PAGE,
    ) -> None:
        """`cache`: where processes share the bearer token, None: below XDG_CACHE_HOME.

        `page`: as many objects of a list are asked for at once, 1 to 1000.
        """
        self.settings = settings or settings_load()
        directory = (cache or cache_directory()) if keeps_token else None
        self._api = Api(self.settings, answer_s=answer_s, cache=directory, patience=patience, page=page)
        self.provision_sites = Provisioning(self._api, "sites")
        self.provision_nodes = Provisioning(self._api, "nodes")
        self.provision_devices = Provisioning(self._api, "devices")
        self.provision_device_types = Provisioning(self._api, "device-types")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._api.close()

    def token_forget(self) -> None:
        """Leave no bearer token behind, in memory or on disk."""
        self._api.bearer.forget()

    # --- what there is --------------------------------------------------------------------------------------

    def ping(self) -> bool:
        return bool(self._api.get("/ping") == {"ping": "pong!"})

    def version(self) -> Version:
        return decode(Version, self._api.get("/version"))

    def health(self, *, site_tag: str | None = None) -> list[NodeHealth]:
        """Every visible node, or those of a site, and whether it is connected and answers."""
        return decode_list(NodeHealth, self._api.get("/site-health-report", {"site_tag": site_tag}))

    def sites(self, *, site_tag: str | None = None, name: str | None = None) -> Iterator[Site]:
        return self._api.pages(Site, "/sites", {"site_tag": site_tag, "name": name})

    def site(self, site_id: str) -> Site:
        return decode(Site, self._api.get(f"/sites/{part(site_id)}"))

    def site_find(self, text: str) -> Site:
        """The one site of this id, tag or name; `NotFound` or `Ambiguous` where it is not one."""
        if _is_uuid(text):
            return self.site(text)
        found = list(self.sites(site_tag=text)) or list(self.sites(name=text))
        if not found:
            raise _not_found(f"There is no site {text!r}, or not for this management token.")
        if len(found) > 1:
            ids = ", ".join(site.id for site in found)
            raise Ambiguous(f"{text!r} is the name of {len(found)} sites: use one of the ids {ids}.")
        return found[0]

    def nodes(self, *, site_id: str | None = None) -> Iterator[Node]:
        return self._api.pages(Node, "/nodes" if site_id is None else f"/sites/{part(site_id)}/nodes", {})

    def node(self, node_id: str) -> Node:
        return decode(Node, self._api.get(f"/nodes/{part(node_id)}"))

    def devices(
        self,
        *,
        site_id: str | None = None,
        category: str | None = None,
        device_tag: str | None = None,
        node_id: str | None = None,
    ) -> Iterator[Device]:
        path = "/devices" if site_id is None else f"/sites/{part(site_id)}/devices"
        query = {"category": category, "device_tag": device_tag, "node_id": node_id}
        return self._api.pages(Device, path, query)

    def device(self, device_id: str) -> Device:
        return decode(Device, self._api.get(f"/devices/{part(device_id)}"))

    def device_find(self, text: str, *, site_id: str | None = None) -> Device:
        """The one device of this id or tag; `Ambiguous` where several sites have such a tag."""
        if _is_uuid(text):
            return self.device(text)
        found = list(self.devices(device_tag=text, site_id=site_id))
        if not found:
            raise _not_found(f"There is no device {text!r}, or not for this management token.")
        if len(found) > 1:
            raise Ambiguous(
                f"{len(found)} sites have a device {text!r}: name the site, or use the device's id."
            )
        return found[0]

    def device_categories(self, site_id: str) -> dict[str, list[Device]]:
        answer = self._api.get(f"/sites/{part(site_id)}/device-categories")
        if not isinstance(answer, dict):
            raise AnswerInvalid("An object of categories is expected.")
        return {category: decode_list(Device, devices) for category, devices in answer.items()}

    def device_types(self) -> Iterator[DeviceType]:
        return self._api.pages(DeviceType, "/device-types", {})

    def loops(self, site_id: str) -> Iterator[Loop]:
        """The closed loops of a site, with how they stand."""
        return self._api.pages(Loop, f"/sites/{part(site_id)}/loops", {})

    def loop(self, loop_id: str) -> Loop:
        return decode(Loop, self._api.get(f"/loops/{part(loop_id)}"))

    def loop_find(self, text: str, *, site_id: str) -> Loop:
        """The loop of this id or tag at a site."""
        found = next((one for one in self.loops(site_id) if text in (one.id, one.loop_tag)), None)
        if found is None:
            raise _not_found(f"There is no closed loop {text!r} at this site.")
        return found

    # --- control --------------------------------------------------------------------------------------------

    def curtail(
        self,
        site_id: str,
        *,
        category: str,
        value: float,
        device_tags: Sequence[str] | None = None,
        unit: Unit | None = None,
        reason: str | None = None,
        dry_run: bool = False,
        idempotency_key: str | None = None,
    ) -> ControlAnswer:
        """Ask the devices of a category for a value, until the site's time limit passes.

        `device_tags`: these alone. `unit`: percent of each device (the default), or `kw` for them together.
        The answer may be `partial` or `failed`: look at it. Without a key one is drawn, and should the
        connection break before the answer came, the same request is sent again under it: it is done once.
        `Unreachable` with `was_sent` leaves open whether it was done. A key has 1 to 255 visible
        characters of ASCII.
        """
        if not math.isfinite(value):
            raise ArgumentInvalid("The value must be finite.")
        body: dict[str, Any] = {"value": value, "category": category}
        if device_tags is not None:
            body["device_tags"] = list(device_tags)
        if unit is not None:
            body["unit"] = unit
        if dry_run:
            body["dry_run"] = True
        return self._control("PUT", f"/sites/{part(site_id)}/curtail-category", body, reason, idempotency_key)

    def release(
        self,
        site_id: str,
        *,
        category: str | None = None,
        device_tags: Sequence[str] | None = None,
        reason: str | None = None,
        idempotency_key: str | None = None,
    ) -> ControlAnswer:
        """End holds before their time, of all devices of the site or of these.

        Each goes to what its schedule says now, else to its default.
        """
        body: dict[str, Any] = {}
        if category is not None:
            body["category"] = category
        if device_tags is not None:
            body["device_tags"] = list(device_tags)
        return self._control("POST", f"/sites/{part(site_id)}/release", body, reason, idempotency_key)

    def explain(self, device_id: str, *, at: str | datetime | None = None) -> Explanation:
        """Why a device stands where it stands, or stood then: a time, or `-10m` for ten minutes ago."""
        text = _instant(at) if isinstance(at, datetime) else at
        answer = self._api.get(f"/devices/{part(device_id)}/explain", {"at": text})
        return decode(Explanation, answer)

    # --- what was ------------------------------------------------------------------------------------------

    def logs(
        self,
        *,
        site_id: str | None = None,
        limit: int = 100,
        category: str | None = None,
        watchdog: bool | None = None,
    ) -> list[ControlLog]:
        """The newest control log lines first, up to 1000."""
        query = {
            "limit": str(limit),
            "category": category,
            "watchdog": None if watchdog is None else str(watchdog).lower(),
        }
        path = "/logs" if site_id is None else f"/sites/{part(site_id)}/logs"
        return decode_list(ControlLog, self._api.get(path, query))

    def device_errors(self, *, hours: int = 24) -> list[SiteErrors]:
        """What went wrong at devices in the last 1 to 720 hours, by site."""
        answer = self._api.get("/device-error-logs", {"period": str(hours)})
        if not isinstance(answer, dict):
            raise AnswerInvalid("An object of sites is expected.")
        return [replace(decode(SiteErrors, errors), site_id=site_id) for site_id, errors in answer.items()]

    def telemetry(
        self,
        *,
        device_id: str | None = None,
        site_id: str | None = None,
        keys: Sequence[str] = (),
        begins: datetime | None = None,
        ends: datetime | None = None,
        resolution: Resolution | None = None,
    ) -> Telemetry:
        """What a device, or a site, measured; without times the last 24 h."""
        if (device_id is None) == (site_id is None):
            raise ArgumentInvalid("Either a device or a site is expected.")
        path = f"/devices/{part(device_id)}" if device_id is not None else f"/sites/{part(site_id or '')}"
        query: dict[str, str | Sequence[str] | None] = {
            "key": list(keys) or None,
            "from": _instant(begins) if begins else None,
            "to": _instant(ends) if ends else None,
            "resolution": resolution,
        }
        return decode(Telemetry, self._api.get(f"{path}/telemetry", query))

    # --- schedules -----------------------------------------------------------------------------------------

    def schedules(
        self,
        *,
        site_id: str | None = None,
        category: str | None = None,
        valid_on: date | None = None,
        valid_from: date | None = None,
        valid_until: date | None = None,
    ) -> Iterator[Schedule]:
        path = "/schedules" if site_id is None else f"/sites/{part(site_id)}/schedules"
        days = {"valid_on": valid_on, "valid_from": valid_from, "valid_until": valid_until}
        query = {"category": category} | {name: str(day) if day else None for name, day in days.items()}
        return self._api.pages(Schedule, path, query)

    def schedule_create(self, *, site_id: str, category: str, valid_on: date, slots: Slots) -> Schedule:
        """Plan a day, by quarter hours of UTC; `Conflict` where it is planned already."""
        body = {"site_id": site_id, "category": category, "valid_on": str(valid_on), "schedule": dict(slots)}
        return decode(Schedule, self._api.change("POST", "/schedules", body))

    def schedule_replace(self, *, site_id: str, category: str, valid_on: date, slots: Slots) -> Schedule:
        """Plan a day anew, whole; `NotFound` where it is not planned yet."""
        body = {"site_id": site_id, "schedule": dict(slots)}
        return decode(Schedule, self._api.change("PUT", f"/schedules/{valid_on}/{part(category)}", body))

    def schedule_delete(self, schedule_id: str) -> None:
        self._api.change("DELETE", f"/schedules/{part(schedule_id)}")

    # --- management tokens, for root -----------------------------------------------------------------------

    def tokens(self) -> Iterator[ManagementToken]:
        return self._api.pages(ManagementToken, "/auth-tokens", {})

    def token_create(self, *, name: str, sites: Sequence[str]) -> ManagementToken:
        body = {"name": name, "sites": list(sites)}
        return decode(ManagementToken, self._api.change("POST", "/auth-tokens", body))

    def token_update(self, token_id: str, *, name: str, sites: Sequence[str]) -> ManagementToken:
        body = {"name": name, "sites": list(sites)}
        return decode(ManagementToken, self._api.change("PUT", f"/auth-tokens/{part(token_id)}", body))

    def token_delete(self, token_id: str) -> None:
        """Whoever uses this token loses access at once."""
        self._api.change("DELETE", f"/auth-tokens/{part(token_id)}")

    # --- events --------------------------------------------------------------------------------------------

    def events(
        self,
        *,
        types: Sequence[str] = (),
        site_id: str | None = None,
        after: str | None = None,
        reconnects: bool = True,
        opened: Callable[[], None] | None = None,
    ) -> Iterator[Event]:
        """What happens, as it happens, for ever.

        `after`: the id of the last event that was seen. A connection that is lost is opened again after the
        last event; `reset` says that something was missed all the same. Without `reconnects` it ends there.
        `opened` hears of each connection that stands.
        """
        query = present({"types": ",".join(types) or None, "site_id": site_id})
        return self._api.events(query, after=after, reconnects=reconnects, opened=opened)

    def _control(
        self, method: str, path: str, body: dict[str, Any], reason: str | None, key: str | None
    ) -> ControlAnswer:
        if reason:
            body["reason"] = reason
        key = key or f"sgm-{uuid.uuid4().hex}"
        answer = self._api.ask_keyed(method, path, json=body, key=key)
        found = decode(ControlAnswer, json_of(answer))
        if body.get("dry_run") and not found.dry_run:
            raise AnswerInvalid("The API knows no dry runs and took this for a request: it was done.")
        return replace(
            found,
            request_id=answer.headers.get("x-request-id", ""),
            idempotency_key=key,
            is_replay=answer.headers.get("idempotency-replayed") == "true",
        )


class Provisioning:
    """Sites, nodes, devices or device types as root makes and changes them.

    Settings are the API's own objects: the keys of docs/api.md, all that can be set.
    """

    def __init__(self, api: Api, collection: str) -> None:
        self._api = api
        self._path = f"/{collection}"

    def create(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        return self._object("POST", self._path, dict(settings))

    def create_many(self, settings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Up to 1,000, all or none; `errors` of a refusal name the place: `17.device_tag`."""
        answer = self._api.change("POST", f"{self._path}/bulk", [dict(one) for one in settings])
        if not isinstance(answer, list):
            raise AnswerInvalid("A list is expected.")
        return answer

    def settings(self, object_id: str) -> dict[str, Any]:
        """All that can be set, passwords left out."""
        path = f"{self._path}/{part(object_id)}"
        # What can be set of a device type is all there is of it.
        path += "" if self._path == "/device-types" else "/settings"
        answer = self._api.get(path)
        return _dict(answer)

    def replace(self, object_id: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Whole: what is left out gets its default."""
        return self._object("PUT", f"{self._path}/{part(object_id)}", dict(settings))

    def change(self, object_id: str, **settings: Any) -> dict[str, Any]:
        return self._object("PATCH", f"{self._path}/{part(object_id)}", settings)

    def delete(self, object_id: str) -> str:
        """Delete, and return what the API has to say about it."""
        answer = self._object("DELETE", f"{self._path}/{part(object_id)}", None)
        return str(answer.get("message", ""))

    def _object(self, method: str, path: str, body: Any) -> dict[str, Any]:
        return _dict(self._api.change(method, path, body))


def _is_uuid(text: str) -> bool:
    try:
        uuid.UUID(text)
    except ValueError:
        return False
    return True


def _not_found(detail: str) -> NotFound:
    return NotFound(detail, status=HTTPStatus.NOT_FOUND, code="not_found")


def _instant(at: datetime) -> str:
    if at.tzinfo is None:
        raise ArgumentInvalid("A time with a time zone is expected.")
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _dict(answer: Any) -> dict[str, Any]:
    if not isinstance(answer, dict):
        raise AnswerInvalid("An object is expected.")
    return answer
