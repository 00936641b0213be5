"""OPC XML-DA: a session per server, a driver per device. See docs/adr/0022-xml-da.md."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TypeVar

from edge.drivers import xml_da_messages as messages
from edge.drivers.errors import DeviceAway, DeviceRefused, DeviceUnreachable, DriverError, ReadingInvalid
from edge.drivers.points import PointDriver
from edge.drivers.web import OK, SERVER_ERROR, WebSession, shown
from edge.drivers.xml_da_messages import (
    SOAP,
    XML_DA,
    Address,
    Browsed,
    Fault,
    ItemReply,
    NotXmlDa,
    Refreshed,
    Reply,
    ServerStatus,
    Subscribed,
)
from edge.profiles.model import Profile, Step
from edge.profiles.points import STATUS_ITEMS, Item, Value, XsdType
from edge.profiles.values import from_device, to_device

T = TypeVar("T")

MAX_ANSWER = 4 * 1024 * 1024
# Codes that tell of trouble at the server and not of the request (3.1.9): the same may succeed later.
TROUBLE = frozenset(("E_BUSY", "E_OUTOFMEMORY", "E_SERVERSTATE", "E_TIMEDOUT"))
NO_SUBSCRIPTION = "E_NOSUBSCRIPTION"
CLAMPED = "S_CLAMP"
# States in which a server means what it says (3.1.8). With a fault of its own lines, each item tells by its
# quality or its result whether it is concerned: one broken line does not take the others' devices away.
WORKING = ("running", "commFault", "")
# States that pass by themselves, and those that somebody has to end: `test` does not reach the devices.
PASSING = ("failed", "suspended")
SAMPLING_MS = 1000
# Nothing is asked more seldom than each quarter of an hour; a server may forget sooner, and is asked anew.
PING_MS = 60_000


class XmlDaSession(WebSession):
    """One XML-DA server, one call at a time. `url` is its whole endpoint: its path is the maker's choice."""

    max_answer = MAX_ANSWER

    async def get_status(self) -> ServerStatus:
        """Who the server is and how it is, whatever its state."""
        return await self._call("GetStatus", messages.get_status_request(), messages.status_answer)

    async def read(self, items: Sequence[Address]) -> tuple[Reply, list[ItemReply]]:
        """What the items have now, in the order in which they were asked for."""
        reply, found = await self._call("Read", messages.read_request(items), messages.read_answer)
        self._judge(reply)
        return reply, self._in_order("Read", items, found)

    async def write(self, items: Sequence[tuple[Address, XsdType, str]]) -> tuple[Reply, list[ItemReply]]:
        """Write all of these, and hear of each what became of it."""
        reply, found = await self._call("Write", messages.write_request(items), messages.write_answer)
        self._judge(reply)
        return reply, self._in_order("Write", [address for address, _, _ in items], found)

    async def browse(self, at: Address, *, continuation: str = "", at_most: int = 0) -> Browsed:
        """What lies below an element of the address space; an empty address is its root."""
        request = messages.browse_request(at, continuation=continuation, at_most=at_most)
        return await self._call("Browse", request, messages.browse_answer)

    async def get_properties(self, items: Sequence[Address]) -> list[dict[str, float | str | None]]:
        """All properties of each item, by name: `dataType`, `accessRights`, `description`, ..."""
        request = messages.get_properties_request(items)
        _, found = await self._call("GetProperties", request, messages.properties_answer)
        return found

    async def subscribe(self, items: Sequence[Address]) -> Subscribed:
        request = messages.subscribe_request(items, sampling_ms=SAMPLING_MS, ping_ms=PING_MS)
        subscribed = await self._call("Subscribe", request, messages.subscribe_answer)
        self._judge(subscribed.reply)
        return subscribed

    async def refresh(self, subscription: str) -> Refreshed:
        """What changed since this was asked last; `lost` where the server has forgotten the subscription."""

        def read(data: bytes) -> Refreshed:
            try:
                return messages.refresh_answer(data, subscription=subscription)
            except Fault as fault:
                if fault.code != NO_SUBSCRIPTION:
                    raise
                return Refreshed(Reply("", None), [], lost=True)

        request = messages.refresh_request(subscription)
        refreshed = await self._call("SubscriptionPolledRefresh", request, read)
        self._judge(refreshed.reply)
        return refreshed

    async def cancel(self, subscription: str) -> None:
        await self._call("SubscriptionCancel", messages.cancel_request(subscription), messages.cancel_answer)

    async def _call(self, operation: str, request: bytes, read: Callable[[bytes], T]) -> T:
        headers = {
            "Content-Type": "text/xml; charset=utf-8",
            "Accept": "text/xml",
            "SOAPAction": f'"{XML_DA}{operation}"',
        }
        answer = await self.exchange("POST", self.url, headers=headers, body=request)
        # A fault comes with 500 (SOAP 1.1, 6.2).
        if answer.status not in (OK, SERVER_ERROR):
            raise self.refusal(answer, what=f"answer {operation}")
        if answer.kind and "xml" not in answer.kind:
            if answer.status == SERVER_ERROR:
                raise self.refusal(answer, what=f"answer {operation}")
            await self.aclose()
            raise DeviceUnreachable(
                f"{self.endpoint} answered {operation} with {shown(answer.kind)}: no XML-DA server, check"
                " the URL"
            )
        try:
            return read(answer.body)
        except Fault as fault:
            raise self._refused(operation, fault) from fault
        except NotXmlDa as error:
            await self.aclose()
            raise DeviceUnreachable(
                f"{self.endpoint} answered {operation} with {shown(str(error))}"
            ) from error

    def _refused(self, operation: str, fault: Fault) -> DriverError:
        reason = shown(fault.text) or "no reason given"
        said = f"{self.endpoint} refused {operation}: {reason} ({shown(fault.code)})"
        is_servers = fault.namespace == SOAP and fault.code.split(".")[0] == "Server"
        if fault.code in TROUBLE or is_servers:
            return DeviceUnreachable(said)
        return DeviceRefused(said)

    def _judge(self, reply: Reply) -> None:
        if reply.state in WORKING:
            return
        said = f"{self.endpoint} is in state {shown(reply.state)!r}, not 'running'"
        if reply.state in PASSING:
            raise DeviceUnreachable(said)
        raise DeviceRefused(said)

    def _in_order(self, operation: str, asked: Sequence[Address], found: list[ItemReply]) -> list[ItemReply]:
        """The answers in the order of the questions: by their handles, else as they stand (3.3.2)."""
        by_handle = {item.handle: item for item in found}
        handles = [str(number) for number in range(len(asked))]
        if by_handle.keys() == set(handles):
            found = [by_handle[handle] for handle in handles]
        elif any(by_handle):
            raise self._something_else(operation)
        if len(found) != len(asked):
            raise self._something_else(operation)
        for address, item in zip(asked, found, strict=True):
            if item.name and item.name.casefold() != address.name.casefold():
                raise self._something_else(operation)
        return found

    def _something_else(self, operation: str) -> DeviceUnreachable:
        return DeviceUnreachable(f"{self.endpoint} answered {operation} for other items than were asked for")


class XmlDaDriver(PointDriver):
    """One device behind a server, as its profile describes it.

    Its setpoint is read from the device each time; what it measures as well, or where the profile says
    `subscribe`, as the server collects it.
    """

    __slots__ = ("_collected", "_generation", "_items", "_left", "_session", "_subscribes", "_subscription")

    def __init__(
        self, *, session: XmlDaSession, profile: Profile, unit: int, nameplate_kw: float | None
    ) -> None:
        super().__init__(profile=profile, nameplate_kw=nameplate_kw)
        del unit  # a server has none
        self._session = session
        self._items: dict[str, Item] = {
            name: point for name, point in profile.points.items() if isinstance(point, Item)
        }
        self._generation = -1
        # The subscription and what it brought; one that is to be given up; and whether it is of any use.
        self._subscription = ""
        self._collected: dict[str, Value] = {}
        self._left = ""
        self._subscribes = profile.subscribe

    @property
    def _where(self) -> str:
        return self._session.endpoint

    @property
    def commands_per_poll(self) -> int:
        telemetry = frozenset(self._profile.telemetry.values())
        if self._reads_together:
            return self._commands(telemetry | self._readback_points)
        return self._commands(telemetry) + self._commands(self._readback_points)

    def _commands(self, names: frozenset[str]) -> int:
        told = {name for name in names if self._items[name].item in STATUS_ITEMS}
        collected = names & self._collectable if self._subscribes else frozenset[str]()
        return sum(bool(part) for part in (told, collected, names - told - collected))

    @property
    def _collectable(self) -> frozenset[str]:
        """What a subscription is for: telemetry, but never the setpoint, which must be that of now."""
        measured = frozenset(self._profile.telemetry.values()) - self._readback_points
        return frozenset(name for name in measured if self._items[name].item not in STATUS_ITEMS)

    def _look_for_reconnection(self) -> None:
        if self._generation != self._session.generation:
            self._generation = self._session.generation
            self._forget()

    def _forget(self) -> None:
        super()._forget()
        self._left, self._subscription = self._subscription or self._left, ""
        self._collected = {}
        self._subscribes = self._profile.subscribe

    def _needed(self, steps: Iterable[Step]) -> frozenset[str]:  # noqa: ARG002 - an item is written as it is
        return frozenset()

    # --- reading

    async def _read(self, names: frozenset[str], *, tolerant: bool = False) -> dict[str, Value]:
        self._look_for_reconnection()
        values: dict[str, Value] = {}
        told = {name for name in names if self._items[name].item in STATUS_ITEMS}
        if told:
            values |= await self._status(told)
        collected = names & self._collectable if self._subscribes and not tolerant else frozenset[str]()
        if collected:
            values |= await self._refreshed()
        asked = sorted(names - told - values.keys())
        if asked:
            values |= await self._read_items(asked, tolerant=tolerant)
        return values

    async def _status(self, names: Iterable[str]) -> dict[str, Value]:
        status = await self._session.get_status()
        said = {
            "$status.ServerState": status.reply.state,
            "$status.StatusInfo": status.info,
            "$status.VendorInfo": status.vendor,
            "$status.ProductVersion": status.version,
        }
        return {name: from_device(self._items[name], said[self._items[name].item] or None) for name in names}

    async def _read_items(self, names: Sequence[str], *, tolerant: bool) -> dict[str, Value]:
        reply, found = await self._session.read([self._address(name) for name in names])
        values: dict[str, Value] = {}
        refused: DriverError | None = None
        for name, item in zip(names, found, strict=True):
            if not item.failed:
                values[name] = self._value(name, item, reply)
            elif item.result in TROUBLE and name not in self._readback_points:
                # What the server could not get at this time; the others are worth reading.
                values[name] = None
            else:
                refused = self._refusal("read", name, item)
                if not tolerant:
                    raise refused
        if refused is not None and not values:
            raise refused
        return values

    def _value(self, name: str, item: ItemReply, reply: Reply | None) -> Value:
        """What an item says. `reply`: what dates it; None where it is of now."""
        point = self._items[name]
        is_setpoint = name in self._readback_points
        if not item.is_good:
            if is_setpoint:
                raise ReadingInvalid(f"{self._where}: {point.name} has quality {shown(item.quality)}")
            return None
        # By the server's clock alone; ours may be another. A setpoint that nobody changes may be old.
        if not is_setpoint and reply is not None and reply.replied is not None and item.at is not None:
            age_s = (reply.replied - item.at).total_seconds()
            if age_s > self._profile.stale_after_s:
                return None
        return from_device(point, item.raw)

    def _address(self, name: str) -> Address:
        point = self._items[name]
        return Address(point.item_path, point.item)

    def _refusal(self, doing: str, name: str, item: ItemReply) -> DriverError:
        said = (
            f"{self._where} refused to {doing} {self._address(name)}: {shown(item.text) or 'no reason given'}"
            f" ({shown(item.result)})"
        )
        # The server answers: nothing is gained by connecting to it anew.
        return DeviceAway(said) if item.result in TROUBLE else DeviceRefused(said)

    # --- subscription

    async def _refreshed(self) -> dict[str, Value]:
        """All that is collected, brought up to date; nothing of it where the server keeps no subscription."""
        names = sorted(self._collectable)
        if self._subscription:
            refreshed = await self._session.refresh(self._subscription)
            if not refreshed.lost:
                self._collect(names, refreshed.items)
                return dict(self._collected)
            # It was not asked for longer than the server keeps it, or the server has restarted.
            self._subscription = ""
        if self._left:
            left, self._left = self._left, ""
            with suppress(DeviceRefused):
                await self._session.cancel(left)
        self._collected = {}
        subscribed = await self._session.subscribe([self._address(name) for name in names])
        self._subscription = subscribed.handle
        if not subscribed.handle or any(item.failed for item in subscribed.items):
            # Asked for one by one, the server says what is wrong, and gives what is right.
            self._subscribes = False
            self._left, self._subscription = subscribed.handle, ""
            return {}
        self._collect(names, subscribed.items)
        return dict(self._collected)

    def _collect(self, names: Sequence[str], items: Iterable[ItemReply]) -> None:
        by_handle = {str(number): name for number, name in enumerate(names)}
        by_item = {self._items[name].item.casefold(): name for name in names}
        for item in items:
            name = by_handle.get(item.handle, "") if item.handle else by_item.get(item.name.casefold(), "")
            if not name or (item.name and item.name.casefold() != self._items[name].item.casefold()):
                self._forget()
                raise DeviceUnreachable(f"{self._where} told of other items than were subscribed to")
            # Its time is that of its last change (2.5.5): that it was not mentioned since makes it of now.
            self._collected[name] = None if item.failed else self._value(name, item, None)

    # --- writing

    async def _put(self, values: Mapping[str, Value], *, only_if_different: bool) -> None:
        texts = {name: self._text(name, value) for name, value in values.items()}
        if only_if_different:
            found = await self._read_items(sorted(values), tolerant=False)
            if all(
                found[name] is not None and self._text(name, found[name]) == texts[name] for name in values
            ):
                return
        self._count(values)
        _, answered = await self._session.write(
            [(self._address(name), self._items[name].type, text) for name, text in texts.items()]
        )
        for name, item in zip(values, answered, strict=True):
            if item.failed:
                raise self._refusal("write", name, item)
            limit = self._profile.limit
            if item.result == CLAMPED and (limit is None or limit.readback is None):
                # Elsewhere the read-back tells how far off it is, and whether that matters.
                raise DeviceRefused(
                    f"{self._where} took {item.raw} in place of {texts[name]} for {self._address(name)}"
                    f" ({CLAMPED})"
                )

    def _text(self, name: str, value: Value) -> str:
        point = self._items[name]
        try:
            told = to_device(point, value)
            return messages.raw_text(point, told)
        except ValueError as error:
            raise DeviceRefused(
                f"{value} cannot be written to {self._address(name)} of {self._where}: {error}"
            ) from error
