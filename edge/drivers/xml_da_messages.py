"""The messages of OPC XML-DA 1.0 as bytes, and their answers as values: no I/O, no state.

Clauses are those of the OPC XML-DA Specification, version 1.0. What comes in is written by somebody else: it
is parsed without document types, entities or anything from outside, and only so deep and so long.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from lxml import etree

from edge.profiles.points import Item, Value, XsdType

XML_DA = "http://opcfoundation.org/webservices/XMLDA/1.0/"
SOAP = "http://schemas.xmlsoap.org/soap/envelope/"
XSD = "http://www.w3.org/2001/XMLSchema"
XSI = "http://www.w3.org/2001/XMLSchema-instance"
PREFIXES = {"soap": SOAP, "xsd": XSD, "xsi": XSI, "n": XML_DA}

# An envelope, a body, a list, an item, an array, its elements: more levels than a dozen mean nothing to us.
MAX_DEPTH = 40
# Browsing gives the most: some ten elements for each of a few thousand names.
MAX_ELEMENTS = 50_000
# Items have six. The builder takes ever longer for each, so that a few hundred thousand take minutes.
MAX_ATTRIBUTES = 100

WHOLE_NUMBERS = ("byte", "short", "int", "long", "integer")
UNSIGNED_NUMBERS = ("unsignedByte", "unsignedShort", "unsignedInt", "unsignedLong")
NUMBERS = frozenset((*WHOLE_NUMBERS, *UNSIGNED_NUMBERS, "float", "double", "decimal"))
WHOLE_RANGE = {
    XsdType.SHORT: (-(2**15), 2**15 - 1),
    XsdType.INT: (-(2**31), 2**31 - 1),
    XsdType.LONG: (-(2**63), 2**63 - 1),
    XsdType.UNSIGNED_SHORT: (0, 2**16 - 1),
    XsdType.UNSIGNED_INT: (0, 2**32 - 1),
}
# What XML can carry (XML 1.0, 2.2), without the control characters.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class NotXmlDa(Exception):  # noqa: N818 - states the fault
    """What was received is no answer of an XML-DA server; the message says what it is."""


class Fault(Exception):  # noqa: N818 - the protocol's word
    """The server refused the whole call. `code`: a local name, in `namespace`; `text`: the server's words."""

    def __init__(self, *, namespace: str, code: str, text: str) -> None:
        super().__init__(f"{text or 'no reason given'} ({code})")
        self.namespace = namespace
        self.code = code
        self.text = text


class Address(NamedTuple):
    """Where an item is: its path and its name; a path may be empty."""

    path: str
    name: str

    def __str__(self) -> str:
        return f"{self.path}/{self.name}" if self.path else self.name


class Reply(NamedTuple):
    """What every answer says of its server (3.1.8); `replied` is None where it cannot be read."""

    state: str
    replied: datetime | None


@dataclass(frozen=True, slots=True)
class ItemReply:
    """What a server says of one item (3.1.7).

    `raw` is a number, a text, or None where there is no value or none of a kind that we use. `result` is the
    local name of the result code, empty where there is none, and `text` the server's words for it. `name` is
    empty where the server does not repeat it.
    """

    name: str
    handle: str
    raw: float | str | None
    quality: str
    at: datetime | None
    result: str
    text: str

    @property
    def failed(self) -> bool:
        """Tell whether it is an error; a code of success says something about a value that is there."""
        # Of other codes than the specification's, the prefix is all that is known (3.1.9).
        return bool(self.result) and not self.result.startswith("S_")

    @property
    def is_good(self) -> bool:
        return self.quality.startswith("good")


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """The answer to GetStatus (3.2.2)."""

    reply: Reply
    vendor: str
    version: str
    info: str
    started: datetime | None


@dataclass(frozen=True, slots=True)
class Element:
    """One element of the address space (3.8.2)."""

    label: str
    address: Address
    is_item: bool
    has_children: bool


class Browsed(NamedTuple):
    """Elements, and where to go on; `continuation` is empty at the end."""

    reply: Reply
    elements: list[Element]
    continuation: str


class Refreshed(NamedTuple):
    """What changed in a subscription; `lost` where the server does not know it any more."""

    reply: Reply
    items: list[ItemReply]
    lost: bool


class Subscribed(NamedTuple):
    """A subscription and its first values; the handle is empty where no item could be subscribed."""

    reply: Reply
    handle: str
    items: list[ItemReply]


# --- requests


def get_status_request() -> bytes:
    return _envelope(_element("GetStatus", LocaleID="en"))


def read_request(items: Sequence[Address]) -> bytes:
    """Ask for the newest that the devices have (`MaxAge` 0); an item's handle is its place in `items`."""
    read = _element("Read")
    read.append(_options())
    listed = etree.SubElement(read, f"{{{XML_DA}}}ItemList", MaxAge="0")
    for handle, address in enumerate(items):
        _item(listed, address, handle)
    return _envelope(read)


def write_request(items: Iterable[tuple[Address, XsdType, str]]) -> bytes:
    """Write texts as `raw_text` gives them, and ask for what the items have then."""
    write = _element("Write", ReturnValuesOnReply="true")
    write.append(_options())
    listed = etree.SubElement(write, f"{{{XML_DA}}}ItemList")
    for handle, (address, kind, text) in enumerate(items):
        value = etree.SubElement(_item(listed, address, handle), f"{{{XML_DA}}}Value")
        value.set(f"{{{XSI}}}type", f"xsd:{kind.value}")
        value.text = text
    return _envelope(write)


def subscribe_request(items: Sequence[Address], *, sampling_ms: int, ping_ms: int) -> bytes:
    """Have changes collected; a subscription that nobody asks for within `ping_ms` may be forgotten."""
    subscribe = _element("Subscribe", ReturnValuesOnReply="true", SubscriptionPingRate=str(ping_ms))
    subscribe.append(_options())
    listed = etree.SubElement(subscribe, f"{{{XML_DA}}}ItemList", RequestedSamplingRate=str(sampling_ms))
    for handle, address in enumerate(items):
        _item(listed, address, handle)
    return _envelope(subscribe)


def refresh_request(subscription: str) -> bytes:
    """Ask at once for what changed: without a hold time the server does not wait (3.6.1)."""
    refresh = _element("SubscriptionPolledRefresh", WaitTime="0", ReturnAllItems="false")
    refresh.append(_options())
    etree.SubElement(refresh, f"{{{XML_DA}}}ServerSubHandles").text = subscription
    return _envelope(refresh)


def cancel_request(subscription: str) -> bytes:
    return _envelope(_element("SubscriptionCancel", ServerSubHandle=subscription))


def browse_request(at: Address, *, continuation: str = "", at_most: int = 0) -> bytes:
    """Ask for what lies below an element; an empty address is the root. `at_most` 0: as the server likes."""
    attributes = {
        "ItemPath": at.path,
        "ItemName": at.name,
        "BrowseFilter": "all",
        "MaxElementsReturned": str(at_most),
        "ReturnErrorText": "true",
    }
    if continuation:
        attributes["ContinuationPoint"] = continuation
    return _envelope(_element("Browse", **attributes))


def get_properties_request(items: Iterable[Address]) -> bytes:
    asked = _element(
        "GetProperties", ReturnAllProperties="true", ReturnPropertyValues="true", ReturnErrorText="true"
    )
    for address in items:
        etree.SubElement(asked, f"{{{XML_DA}}}ItemIDs", ItemPath=address.path, ItemName=address.name)
    return _envelope(asked)


def _element(operation: str, **attributes: str) -> etree._Element:
    return etree.Element(f"{{{XML_DA}}}{operation}", attributes, nsmap=PREFIXES)


def _options() -> etree._Element:
    # All of these but the text are off where nobody asks for them (3.1.6).
    return etree.Element(
        f"{{{XML_DA}}}Options", ReturnErrorText="true", ReturnItemName="true", ReturnItemTime="true"
    )


def _item(listed: etree._Element, address: Address, handle: int) -> etree._Element:
    attributes = {"ItemName": address.name, "ClientItemHandle": str(handle)}
    if address.path:
        attributes["ItemPath"] = address.path
    return etree.SubElement(listed, f"{{{XML_DA}}}Items", attributes)


def _envelope(message: etree._Element) -> bytes:
    envelope = etree.Element(f"{{{SOAP}}}Envelope", nsmap=PREFIXES)
    etree.SubElement(envelope, f"{{{SOAP}}}Body").append(message)
    return etree.tostring(envelope, xml_declaration=True, encoding="utf-8")


# --- answers


def read_answer(data: bytes) -> tuple[Reply, list[ItemReply]]:
    """The answer to Read; `NotXmlDa`, or the `Fault` that came in its place."""
    response = _response(data, "Read")
    return _reply(response, "Read"), _items(response.find(f"{{{XML_DA}}}RItemList"), _texts(response))


def write_answer(data: bytes) -> tuple[Reply, list[ItemReply]]:
    response = _response(data, "Write")
    return _reply(response, "Write"), _items(response.find(f"{{{XML_DA}}}RItemList"), _texts(response))


def status_answer(data: bytes) -> ServerStatus:
    response = _response(data, "GetStatus")
    reply = _reply(response, "GetStatus")
    status = response.find(f"{{{XML_DA}}}Status")
    if status is None:
        raise NotXmlDa("a GetStatusResponse without a Status")
    return ServerStatus(
        reply=reply,
        vendor=_text_of(status, "VendorInfo"),
        version=status.get("ProductVersion", "").strip(),
        info=_text_of(status, "StatusInfo"),
        started=_time(status.get("StartTime")),
    )


def subscribe_answer(data: bytes) -> Subscribed:
    response = _response(data, "Subscribe")
    texts = _texts(response)
    wrapped = response.iterfind(f"{{{XML_DA}}}RItemList/{{{XML_DA}}}Items/{{{XML_DA}}}ItemValue")
    items = [_item_reply(one, texts) for one in wrapped]
    return Subscribed(_reply(response, "Subscribe"), response.get("ServerSubHandle", ""), items)


def refresh_answer(data: bytes, *, subscription: str) -> Refreshed:
    response = _response(data, "SubscriptionPolledRefresh")
    texts = _texts(response)
    items = [
        item
        for listed in response.iterfind(f"{{{XML_DA}}}RItemList")
        if listed.get("SubscriptionHandle", subscription) == subscription
        for item in _items(listed, texts)
    ]
    invalid = {one.text for one in response.iterfind(f"{{{XML_DA}}}InvalidServerSubHandles")}
    return Refreshed(_reply(response, "SubscriptionPolledRefresh"), items, subscription in invalid)


def cancel_answer(data: bytes) -> None:
    _response(data, "SubscriptionCancel")


def browse_answer(data: bytes) -> Browsed:
    response = _response(data, "Browse")
    elements = [
        Element(
            label=one.get("Name", ""),
            address=Address(one.get("ItemPath", ""), one.get("ItemName", "")),
            is_item=_is_true(one.get("IsItem")),
            has_children=_is_true(one.get("HasChildren")),
        )
        for one in response.iterfind(f"{{{XML_DA}}}Elements")
    ]
    more = response.get("ContinuationPoint", "") if _is_true(response.get("MoreElements")) else ""
    return Browsed(_reply(response, "Browse"), elements, more)


def properties_answer(data: bytes) -> tuple[Reply, list[dict[str, float | str | None]]]:
    """The properties of each item that was asked for, by local name; an item that is refused has none."""
    response = _response(data, "GetProperties")
    listed = [
        {
            _local(one.get("Name", "")): _raw(one.find(f"{{{XML_DA}}}Value"))
            for one in item.iterfind(f"{{{XML_DA}}}Properties")
            if not one.get("ResultID")
        }
        for item in response.iterfind(f"{{{XML_DA}}}PropertyLists")
    ]
    return _reply(response, "GetProperties"), listed


class _Careful:
    """Builds the tree, and gives up where a document wants to be more than a message; `refused` says why."""

    def __init__(self) -> None:
        # The stubs leave out the prefixes, which lxml takes and gives.
        self._builder: Any = etree.TreeBuilder()
        self._depth = self._elements = 0
        self.refused = ""

    def doctype(self, name: str | None, public: str | None, system: str | None) -> None:  # noqa: ARG002 - lxml's own
        self._refuse("a document with a DTD, which SOAP forbids")

    def start(self, tag: str, attributes: Mapping[str, str], nsmap: Mapping[str, str]) -> None:
        self._depth += 1
        self._elements += 1
        if self._depth > MAX_DEPTH:
            self._refuse(f"a document of more than {MAX_DEPTH} levels")
        if self._elements > MAX_ELEMENTS:
            self._refuse(f"a document of more than {MAX_ELEMENTS} elements")
        if len(attributes) + len(nsmap) > MAX_ATTRIBUTES:
            self._refuse(f"an element of more than {MAX_ATTRIBUTES} attributes")
        # What has no prefix comes with an empty one, and is to be given with none.
        self._builder.start(tag, dict(attributes), {prefix or None: uri for prefix, uri in nsmap.items()})

    def end(self, tag: str) -> None:
        self._depth -= 1
        self._builder.end(tag)

    def data(self, text: str) -> None:
        self._builder.data(text)

    def comment(self, text: str) -> None:
        """Comments say nothing to us."""

    def pi(self, target: str, data: str | None = None) -> None:
        """Nor does what is meant for other programs."""

    def close(self) -> etree._Element:
        root: etree._Element = self._builder.close()
        return root

    def _refuse(self, reason: str) -> None:
        self.refused = self.refused or reason
        raise NotXmlDa(reason)


def parsed(data: bytes) -> etree._Element:
    """The root of a document from outside; `NotXmlDa` where it is no harmless XML."""
    careful = _Careful()
    target: Any = careful
    parser = etree.XMLParser(
        target=target,
        # Without this, `&amp;` in an attribute stays as it is. Others than XML's own five need a DTD.
        resolve_entities="internal",
        no_network=True,
        load_dtd=False,
        dtd_validation=False,
        huge_tree=False,
    )
    try:
        root: etree._Element = etree.fromstring(data, parser)
    except (etree.XMLSyntaxError, AssertionError, ValueError) as error:
        # The parser stops at what the target refuses, and complains of its own that there is no tree then.
        raise NotXmlDa(careful.refused or f"no XML: {error}") from error
    return root


def _response(data: bytes, operation: str) -> etree._Element:
    envelope = parsed(data)
    if envelope.tag != f"{{{SOAP}}}Envelope":
        raise NotXmlDa(f"no SOAP 1.1 envelope, but {_shown(envelope.tag)}")
    body = envelope.find(f"{{{SOAP}}}Body")
    first = None if body is None else next(iter(body), None)
    if first is None:
        raise NotXmlDa("an envelope without a body")
    if first.tag == f"{{{SOAP}}}Fault":
        raise _fault(first)
    if first.tag != f"{{{XML_DA}}}{operation}Response":
        raise NotXmlDa(f"no {operation}Response of XML-DA 1.0, but {_shown(first.tag)}")
    return first


def _fault(fault: etree._Element) -> Fault:
    # SOAP 1.1, 4.4: its children have no namespace; some servers give them one.
    found = {_local_of(child.tag): child for child in fault}
    code = found.get("faultcode")
    text = found.get("faultstring")
    namespace, name = ("", "") if code is None else _qname(code, code.text or "")
    words = "" if text is None else " ".join((text.text or "").split())
    return Fault(namespace=namespace, code=name or "no code", text=words[:500])


def _reply(response: etree._Element, operation: str) -> Reply:
    base = response.find(f"{{{XML_DA}}}{operation}Result")
    if base is None:
        raise NotXmlDa(f"a {operation}Response without the state of its server")
    return Reply(state=base.get("ServerState", "").strip(), replied=_time(base.get("ReplyTime")))


def _texts(response: etree._Element) -> dict[str, str]:
    """The server's words for the result codes of an answer."""
    return {
        _qname(error, error.get("ID", ""))[1]: " ".join(_text_of(error, "Text").split())[:500]
        for error in response.iterfind(f"{{{XML_DA}}}Errors")
    }


def _items(listed: etree._Element | None, texts: Mapping[str, str]) -> list[ItemReply]:
    if listed is None:
        return []
    return [_item_reply(one, texts) for one in listed.iterfind(f"{{{XML_DA}}}Items")]


def _item_reply(item: etree._Element, texts: Mapping[str, str]) -> ItemReply:
    result = _qname(item, item.get("ResultID", ""))[1]
    quality = item.find(f"{{{XML_DA}}}Quality")
    return ItemReply(
        name=item.get("ItemName", ""),
        handle=item.get("ClientItemHandle", ""),
        raw=_raw(item.find(f"{{{XML_DA}}}Value")),
        # Both may be left out of a good value (3.1.7).
        quality="good" if quality is None else quality.get("QualityField", "good"),
        at=_time(item.get("Timestamp")),
        result=result,
        text=texts.get(result, ""),
    )


def _raw(value: etree._Element | None) -> float | str | None:
    if value is None or _is_true(value.get(f"{{{XSI}}}nil")):
        return None
    text = value.text or ""
    if len(value):
        # An array.
        return None
    namespace, kind = _qname(value, value.get(f"{{{XSI}}}type", ""))
    if namespace != XSD or kind not in (*NUMBERS, "boolean"):
        return text
    text = text.strip()
    if kind == "boolean":
        return {"true": 1.0, "1": 1.0, "false": 0.0, "0": 0.0}.get(text)
    return _finite(text)


def _finite(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    # "NaN" and "INF" are numbers to XML Schema, and none that can be measured.
    return number if math.isfinite(number) else None


def _qname(element: etree._Element, text: str) -> tuple[str, str]:
    """Namespace and local name of a qualified name, by the prefixes that hold where it stands."""
    prefix, colon, local = text.strip().rpartition(":")
    namespace = element.nsmap.get(prefix if colon else None)
    return (namespace or "", local)


def _local(text: str) -> str:
    return text.strip().rpartition(":")[2]


def _local_of(tag: object) -> str:
    return str(tag).rpartition("}")[2]


def _shown(tag: object) -> str:
    return f"<{_local_of(tag)[:60]}>"


def _text_of(parent: etree._Element, child: str) -> str:
    return (parent.findtext(f"{{{XML_DA}}}{child}") or "").strip()


def _is_true(text: str | None) -> bool:
    return (text or "").strip() in ("true", "1")


_FRACTION = re.compile(r"\.(\d+)")


def _time(text: str | None) -> datetime | None:
    """A moment as XML Schema writes it; without a zone it is taken for UTC. None where it is none."""
    if not text:
        return None
    # Servers give up to seven digits of a second, and Python reads at most six.
    shortened = _FRACTION.sub(lambda match: f".{match[1][:6]:0<6}", text.strip(), count=1)
    try:
        moment = datetime.fromisoformat(shortened)
    except ValueError:
        return None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


# --- values


def raw_text(point: Item, value: Value) -> str:
    """How a value in the device's own terms stands in a document; `ValueError` where it does not fit."""
    if point.type is XsdType.STRING:
        text = f"{value:g}" if isinstance(value, float) else str(value)
        if _NOT_XML.search(text):
            raise ValueError("it has characters that XML cannot carry")
        return text
    if isinstance(value, str):
        value = float(value)
    if value is None or not math.isfinite(value):
        raise ValueError("expected a finite number")
    if point.type is XsdType.BOOLEAN:
        if value not in (0, 1):
            raise ValueError("expected 0 or 1")
        return "true" if value else "false"
    if point.type is XsdType.FLOAT:
        try:
            struct.pack("<f", value)
        except OverflowError as error:
            raise ValueError("it does not fit a 32-bit float") from error
        return f"{value:.9g}"
    if point.type is XsdType.DOUBLE:
        return repr(float(value))
    whole = round(value)
    lowest, highest = WHOLE_RANGE[point.type]
    if not lowest <= whole <= highest:
        raise ValueError(f"{whole} is outside {lowest} to {highest} ({point.type.value})")
    return str(whole)
