"""OPC XML-DA servers with one device behind them, on real sockets, built from the device's profile.

It shares no line with our client: it parses, types and answers by itself, after the specification's version
1.0, whose clauses are cited.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

from lxml import etree
from lxml.builder import ElementMaker

from edge.profiles.model import VALUE
from edge.profiles.points import STATUS_ITEMS, Access, Item, Point, XsdType
from edge.profiles.values import from_device
from edge.simulators.device import Fault
from edge.simulators.web import Asked, Said, SimulatedServer

DA = "http://opcfoundation.org/webservices/XMLDA/1.0/"
ENVELOPE = "http://schemas.xmlsoap.org/soap/envelope/"
SCHEMA = "http://www.w3.org/2001/XMLSchema"
INSTANCE = "http://www.w3.org/2001/XMLSchema-instance"
TYPE, NIL = f"{{{INSTANCE}}}type", f"{{{INSTANCE}}}nil"
BITS = {
    "byte": (-(2**7), 2**7 - 1),
    "unsignedByte": (0, 2**8 - 1),
    "short": (-(2**15), 2**15 - 1),
    "unsignedShort": (0, 2**16 - 1),
    "int": (-(2**31), 2**31 - 1),
    "unsignedInt": (0, 2**32 - 1),
    "long": (-(2**63), 2**63 - 1),
    "unsignedLong": (0, 2**64 - 1),
}
# What the specification has to say to each of its codes (3.1.9), in this server's words.
TEXTS = {
    "E_ACCESS_DENIED": "The server does not allow this to the client.",
    "E_BADTYPE": "The value is of another type than the item.",
    "E_FAIL": "The call has failed.",
    "E_INVALIDCONTINUATIONPOINT": "The continuation point is not valid.",
    "E_NOSUBSCRIPTION": "There is no such subscription.",
    "E_RANGE": "The value is out of range.",
    "E_READONLY": "The item cannot be written.",
    "E_SERVERSTATE": "The server is not in a state to do this.",
    "E_TIMEDOUT": "The device did not answer in time.",
    "E_UNKNOWNITEMNAME": "There is no such item.",
    "E_UNKNOWNITEMPATH": "There is no such path.",
    "E_WRITEONLY": "The item cannot be read.",
    "S_CLAMP": "The value was clamped to what the device takes.",
}


class _Refusal(Exception):  # noqa: N818 - states the fault
    def __init__(self, code: str, *, text: str = "") -> None:
        super().__init__(code)
        self.code = code
        self.text = text or TEXTS.get(code, "")


@dataclass(slots=True)
class _Subscription:
    """Who is told what: point by client's handle, and what was told last."""

    items: dict[str, str]
    ping_s: float
    asked_at: float
    told: dict[str, str] = field(default_factory=dict)


class SimulatedXmlDa(SimulatedServer):
    """A device behind an XML-DA server. Points are items; what a device lacks is no item.

    For tests it can be strict or sloppy, as servers are: `clamps` what is out of range rather than refuse it;
    `omits` optional parts of answers (`quality`, `names`, `handles`, `times`); `prefixes` by which it calls
    the namespaces; `server_state`; `qualities`, `ages_s` and `bounds` of items by point; `codes` with which
    items are refused; a `fault_code` for all calls but GetStatus; `clock_off_s`, by which its clock is off.
    """

    path = "/XmlDa/Service.asmx"
    default_prefixes: ClassVar[dict[str | None, str]] = {
        "env": ENVELOPE,
        "da": DA,
        "xs": SCHEMA,
        "i": INSTANCE,
    }

    def __init__(self, **setting: Any) -> None:
        self.clamps = False
        self.omits: set[str] = set()
        self.prefixes: dict[str | None, str] = dict(self.default_prefixes)
        self.server_state = "running"
        self.fault_code = ""
        self.qualities: dict[str, str] = {}
        self.ages_s: dict[str, float] = {}
        self.codes: dict[str, str] = {}
        self.clock_off_s = 0.0
        self.bounds: dict[str, tuple[float, float]] = {}
        self.started_at = datetime.now(UTC)
        # What was asked and answered, for who wants to judge it.
        self.exchanges: list[tuple[bytes, bytes]] = []
        self.subscriptions: dict[str, _Subscription] = {}
        self._handles = itertools.count(1)
        super().__init__(**setting)
        self._items: dict[tuple[str, str], str] = {
            (point.item_path, point.item): name
            for name, point in self.profile.points.items()
            if isinstance(point, Item) and point.item not in STATUS_ITEMS
        }

    async def restart(self) -> None:
        self.subscriptions.clear()
        await super().restart()

    def lack(self, name: str) -> None:
        """Be a device without this item."""
        self._items = {address: one for address, one in self._items.items() if one != name}

    def quantised(self, point: Point, raw: float | str) -> float | str:
        assert isinstance(point, Item)
        if point.type is XsdType.STRING:
            return str(raw)
        number = float(raw)
        if point.type.value in BITS:
            low, high = BITS[point.type.value]
            if not low <= round(number) <= high:
                raise ValueError(f"{number:g} is no {point.type.value}")
            return float(round(number))
        return number

    # --- requests

    def answer(self, asked: Asked) -> Said:
        if asked.method != "POST":
            return Said(405, "text/plain", b"POST only")
        if asked.target != self.path:
            return Said(404, "text/html", b"<html><body>not here</body></html>")
        try:
            answer = self._answered(asked.body)
            status = 200
        except _Refusal as refusal:
            answer, status = self._fault(refusal), 500
        data = etree.tostring(answer, xml_declaration=True, encoding="utf-8")
        self.exchanges.append((asked.body, data))
        del self.exchanges[:-50]
        return Said(status, "text/xml; charset=utf-8", data)

    def _answered(self, body: bytes) -> etree._Element:
        # By what stands in the body, as real servers do, and not by SOAPAction.
        parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False)
        try:
            envelope = etree.fromstring(body, parser)
        except etree.XMLSyntaxError as error:
            raise _Refusal("Client", text=str(error)) from error
        call = envelope.find(f"{{{ENVELOPE}}}Body/*")
        name = "" if call is None else str(call.tag).removeprefix(f"{{{DA}}}")
        operations: dict[str, Callable[[etree._Element], list[etree._Element]]] = {
            "GetStatus": self._get_status,
            "Read": self._read,
            "Write": self._write,
            "Subscribe": self._subscribe,
            "SubscriptionPolledRefresh": self._refresh,
            "SubscriptionCancel": self._cancel,
            "Browse": self._browse,
            "GetProperties": self._get_properties,
        }
        if call is None or name not in operations:
            raise _Refusal("Client", text=f"no operation {name[:60]}")
        if self.fault_code and name != "GetStatus":
            raise _Refusal(self.fault_code)
        self.let_own_fallback_act()
        self.measure()
        make = self._make()
        response = make(f"{name}Response")
        for part in operations[name](call):
            if part.tag == "attributes":
                response.attrib.update(part.attrib)
            else:
                response.append(part)
        if name != "SubscriptionCancel":
            response.insert(0, self._base(f"{name}Result"))
        return self._enveloped(response)

    def _make(self) -> ElementMaker:
        return ElementMaker(namespace=DA, nsmap=self.prefixes)

    def _enveloped(self, response: etree._Element) -> etree._Element:
        make = ElementMaker(namespace=ENVELOPE, nsmap=self.prefixes)
        return make.Envelope(make.Body(response))

    def _base(self, name: str) -> etree._Element:
        now = self._stamp(0)
        return self._make()(name, RcvTime=now, ReplyTime=now, ServerState=self.server_state)

    def _fault(self, refusal: _Refusal) -> etree._Element:
        make = ElementMaker(namespace=ENVELOPE, nsmap=self.prefixes)
        namespace = ENVELOPE if refusal.code in ("Client", "Server") else DA
        code, text = etree.Element("faultcode"), etree.Element("faultstring")
        code.text, text.text = self._qname(namespace, refusal.code), refusal.text
        return make.Envelope(make.Body(make.Fault(code, text)))

    def _qname(self, namespace: str, local: str) -> str:
        prefix = next(prefix for prefix, uri in self.prefixes.items() if uri == namespace)
        return f"{prefix}:{local}" if prefix else local

    def _stamp(self, age_s: float) -> str:
        at = datetime.now(UTC) + timedelta(seconds=self.clock_off_s - age_s)
        # Seven digits of a second, as .NET has them.
        return at.strftime("%Y-%m-%dT%H:%M:%S.%f") + "0Z"

    # --- operations

    def _get_status(self, call: etree._Element) -> list[etree._Element]:
        del call
        make = self._make()
        said = {
            point.item: value
            for name, point in self.profile.points.items()
            if isinstance(point, Item)
            and point.item in STATUS_ITEMS
            and isinstance(value := self.get(name), str)
        }
        status = make.Status(
            make.StatusInfo(said.get("$status.StatusInfo", "all is well")),
            make.VendorInfo(said.get("$status.VendorInfo", self.profile.maker)),
            make.SupportedLocaleIDs("en"),
            make.SupportedInterfaceVersions("XML_DA_Version_1_0"),
            StartTime=self.started_at.isoformat().replace("+00:00", "Z"),
            ProductVersion=said.get("$status.ProductVersion", "1.0"),
        )
        return [status]

    def _read(self, call: etree._Element) -> list[etree._Element]:
        listed = self._listed(call)
        make = self._make()
        replies = make.RItemList()
        codes: set[str] = set()
        for item in listed:
            name, code = self._found(item, listed)
            if not code and self.profile.points[name].access is Access.WRITE:
                code = "E_WRITEONLY"
            code = code or self.codes.get(name, "")
            replies.append(self._item("Items", item, call, name=name, code=code))
            codes.add(code)
        return [replies, *self._errors(codes)]

    def _write(self, call: etree._Element) -> list[etree._Element]:
        if call.get("ReturnValuesOnReply") is None:
            raise _Refusal("Client", text="ReturnValuesOnReply is required")
        listed = self._listed(call)
        shows = call.get("ReturnValuesOnReply") in ("true", "1")
        replies = self._make().RItemList()
        codes: set[str] = set()
        written: list[str] = []
        answered = []
        for item in listed:
            name, code = self._found(item, listed)
            code = code or self._put_item(name, item)
            answered.append((item, name, code))
            if not code.startswith("E_") and self.fault is not Fault.IGNORE_WRITES:
                written.append(name)
            codes.add(code)
        if written:
            self.wrote(written)
        for item, name, code in answered:
            replies.append(
                self._item("Items", item, call, name=name, code=code, with_value=shows and code[:2] != "E_")
            )
        return [replies, *self._errors(codes)]

    def _subscribe(self, call: etree._Element) -> list[etree._Element]:
        listed = self._listed(call)
        make = self._make()
        shows = call.get("ReturnValuesOnReply") in ("true", "1")
        replies = make.RItemList()
        codes: set[str] = set()
        items: dict[str, str] = {}
        for item in listed:
            name, code = self._found(item, listed)
            if not code:
                items[item.get("ClientItemHandle", "")] = name
            codes.add(code)
            if shows or code:
                replies.append(make.Items(self._item("ItemValue", item, call, name=name, code=code)))
        handle = ""
        if items:
            handle = f"subscription-{next(self._handles)}"
            subscription = _Subscription(
                items, int(call.get("SubscriptionPingRate", "0")) / 1000, self.clock()
            )
            subscription.told = {name: self._spelled(name) for name in items.values()} if shows else {}
            self.subscriptions[handle] = subscription
        return [self._attributes(ServerSubHandle=handle), replies, *self._errors(codes)]

    def _refresh(self, call: etree._Element) -> list[etree._Element]:
        make = self._make()
        parts: list[etree._Element] = []
        invalid: list[etree._Element] = []
        for one in call.iterfind(f"{{{DA}}}ServerSubHandles"):
            handle = one.text or ""
            subscription = self.subscriptions.get(handle)
            if subscription is not None and 0 < subscription.ping_s < self.clock() - subscription.asked_at:
                del self.subscriptions[handle]
                subscription = None
            if subscription is None:
                invalid.append(make.InvalidServerSubHandles(handle))
                continue
            subscription.asked_at = self.clock()
            changed = make.RItemList(SubscriptionHandle=handle)
            for client_handle, name in subscription.items.items():
                spelled = self._spelled(name)
                if call.get("ReturnAllItems") in ("true", "1") or subscription.told.get(name) != spelled:
                    subscription.told[name] = spelled
                    asked = etree.Element("asked", ClientItemHandle=client_handle)
                    changed.append(self._item("Items", asked, call, name=name))
            parts.append(changed)
        if invalid and not parts:
            # One that knows none of them refuses the call (3.6.2).
            raise _Refusal("E_NOSUBSCRIPTION")
        return [*invalid, *parts]

    def _cancel(self, call: etree._Element) -> list[etree._Element]:
        if self.subscriptions.pop(call.get("ServerSubHandle", ""), None) is None:
            raise _Refusal("E_NOSUBSCRIPTION")
        return []

    def _browse(self, call: etree._Element) -> list[etree._Element]:
        make = self._make()
        path = call.get("ItemPath", "")
        if path and path not in {one for one, _ in self._items}:
            raise _Refusal("E_UNKNOWNITEMPATH")
        branches = sorted({one for one, _ in self._items if one and not path})
        elements = [
            make.Elements(Name=one, ItemPath=one, ItemName="", IsItem="false", HasChildren="true")
            for one in branches
        ]
        elements += [
            make.Elements(Name=item, ItemPath=one, ItemName=item, IsItem="true", HasChildren="false")
            for one, item in self._items
            if one == path
        ]
        begin = call.get("ContinuationPoint", "0")
        if not begin.isdecimal() or int(begin) > len(elements):
            raise _Refusal("E_INVALIDCONTINUATIONPOINT")
        at_most = int(call.get("MaxElementsReturned", "0")) or len(elements)
        end = int(begin) + at_most
        more = {"MoreElements": "true", "ContinuationPoint": str(end)} if end < len(elements) else {}
        return [self._attributes(**more), *elements[int(begin) : end]]

    def _get_properties(self, call: etree._Element) -> list[etree._Element]:
        make = self._make()
        lists: list[etree._Element] = []
        codes: set[str] = set()
        for asked in call.iterfind(f"{{{DA}}}ItemIDs"):
            name, code = self._found(asked, call)
            address = {"ItemPath": asked.get("ItemPath", ""), "ItemName": asked.get("ItemName", "")}
            codes.add(code)
            if code:
                lists.append(make.PropertyLists(ResultID=self._qname(DA, code), **address))
                continue
            point = self.profile.points[name]
            assert isinstance(point, Item)
            rights = {Access.READ: "readable", Access.WRITE: "writable"}.get(point.access, "readWritable")
            lists.append(
                make.PropertyLists(
                    self._property("dataType", self._qname(SCHEMA, point.type.value), kind="QName"),
                    self._property("accessRights", rights, kind="string"),
                    self._property("description", point.name, kind="string"),
                    self._property("engineeringUnits", point.unit, kind="string"),
                    **address,
                )
            )
        return [*lists, *self._errors(codes)]

    # --- parts of answers

    def _attributes(self, **attributes: str) -> etree._Element:
        """Attributes for the response itself, carried as an element of no namespace."""
        return etree.Element("attributes", attributes)

    def _listed(self, call: etree._Element) -> etree._Element:
        listed = call.find(f"{{{DA}}}ItemList")
        if listed is None or not len(listed):
            raise _Refusal("E_FAIL", text="no items")
        return listed

    def _found(self, item: etree._Element, listed: etree._Element) -> tuple[str, str]:
        """The point that an item is, or the code with which it is refused."""
        path = item.get("ItemPath", listed.get("ItemPath", ""))
        name = self._items.get((path, item.get("ItemName", "")))
        if name is not None:
            return name, ""
        known = path in {one for one, _ in self._items}
        return "", "E_UNKNOWNITEMNAME" if known else "E_UNKNOWNITEMPATH"

    def _item(
        self,
        tag: str,
        asked: etree._Element,
        call: etree._Element,
        *,
        name: str,
        code: str = "",
        with_value: bool = True,
    ) -> etree._Element:
        """An item as it is answered; its name and time only where they were asked for (3.1.6)."""
        make = self._make()
        options = call.find(f"{{{DA}}}Options")
        wanted = {} if options is None else dict(options.attrib)
        reply = make(tag)
        point = self.profile.points.get(name)
        item_name = point.item if isinstance(point, Item) else asked.get("ItemName", "")
        if self.fault is Fault.WRONG_UNIT:
            item_name = f"another/{item_name}"
        if wanted.get("ReturnItemName") == "true" and "names" not in self.omits:
            reply.set("ItemName", item_name)
        if asked.get("ClientItemHandle") is not None and "handles" not in self.omits:
            reply.set("ClientItemHandle", asked.get("ClientItemHandle", ""))
        if code:
            reply.set("ResultID", self._qname(DA, code))
        if code.startswith("E_") or not name or not with_value:
            return reply
        if wanted.get("ReturnItemTime") == "true" and "times" not in self.omits:
            reply.set("Timestamp", self._stamp(self.ages_s.get(name, 0.0)))
        quality = self.qualities.get(name, "good")
        told = self.told(name)
        if told is None and quality == "good":
            quality = "badNotConnected"
        if quality.startswith("bad") and quality != "badLastKnownValue":
            reply.append(make.Quality(QualityField=quality))
            return reply
        reply.append(self._value(name, stale=name in self.stale))
        if quality != "good":
            reply.append(make.Quality(QualityField=quality))
        elif "quality" not in self.omits:
            reply.append(make.Quality())
        return reply

    def _value(self, name: str, *, stale: bool) -> etree._Element:
        point = self.profile.points[name]
        assert isinstance(point, Item)
        value = self._make().Value(self._spelled(name, stale=stale))
        value.set(TYPE, self._qname(SCHEMA, point.type.value))
        return value

    def _spelled(self, name: str, *, stale: bool = False) -> str:
        """What an item holds, as XML Schema writes it."""
        point = self.profile.points[name]
        assert isinstance(point, Item)
        raw = self._raw[name]
        if stale:
            before = self._raw[name]
            self.put(name, self.stale[name])
            raw, self._raw[name] = self._raw[name], before
        if raw is None:
            return ""
        if point.type is XsdType.BOOLEAN:
            return "true" if raw else "false"
        if point.type.value in BITS:
            return str(int(raw))
        return raw if isinstance(raw, str) else repr(raw)

    def _property(self, name: str, text: str, *, kind: str) -> etree._Element:
        make = self._make()
        value = make.Value(text)
        value.set(TYPE, self._qname(SCHEMA, kind))
        return make.Properties(value, Name=self._qname(DA, name))

    def _errors(self, codes: Iterable[str]) -> list[etree._Element]:
        make = self._make()
        return [
            make.Errors(make.Text(TEXTS.get(code, "")), ID=self._qname(DA, code))
            for code in sorted(filter(None, codes))
        ]

    # --- writing

    def _put_item(self, name: str, item: etree._Element) -> str:
        """Write one item; the code that it is answered with, empty where all is well."""
        point = self.profile.points[name]
        assert isinstance(point, Item)
        if self.fault is Fault.WRITE_EXCEPTION:
            return "E_ACCESS_DENIED"
        if not point.writable:
            return "E_READONLY"
        if name in self.codes:
            return self.codes[name]
        value = item.find(f"{{{DA}}}Value")
        if value is None or value.get(NIL) in ("true", "1"):
            return "E_BADTYPE"
        raw = _understood(value, point)
        if raw is None:
            return "E_BADTYPE"
        code = ""
        low, high = self._range(name)
        meant = from_device(point, raw)
        if isinstance(meant, float | int) and not low <= meant <= high:
            if not self.clamps:
                return "E_RANGE"
            meant, code = max(low, min(high, meant)), "S_CLAMP"
        if self.fault is Fault.IGNORE_WRITES:
            return code
        try:
            if code:
                self.put(name, meant)
            else:
                self._raw[name] = self.quantised(point, raw)
        except ValueError:
            return "E_RANGE"
        return code

    def _range(self, name: str) -> tuple[float, float]:
        """What a point takes: the setpoint what the profile allows, with room for rounding; others all."""
        if name in self.bounds:
            return self.bounds[name]
        limit = self.profile.limit
        if limit is None or VALUE not in [step.writes.get(name) for step in limit.set]:
            return -math.inf, math.inf
        if self.profile.points[name].codes:
            return -math.inf, math.inf
        span = self._in_theirs(self.profile.max_value) - self._in_theirs(self.profile.min_value)
        slack = span / 1000
        low, high = self._in_theirs(self.profile.min_value), self._in_theirs(self.profile.max_value)
        return low - slack, high + slack


def _understood(value: etree._Element, point: Item) -> float | str | None:
    """What was written, by the type that stands with it; None where it is not of the item's kind (2.7.1)."""
    prefix, _, kind = (value.get(TYPE) or "").rpartition(":")
    if value.nsmap.get(prefix or None) != SCHEMA:
        return None
    text = value.text or ""
    if point.type is XsdType.STRING:
        return text if kind == "string" else None
    if point.type is XsdType.BOOLEAN:
        truths = {"true": 1.0, "1": 1.0, "false": 0.0, "0": 0.0}
        return truths.get(text.strip()) if kind == "boolean" else None
    if kind not in (*BITS, "float", "double", "decimal", "integer"):
        return None
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
