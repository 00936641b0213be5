"""What a device can be asked for and told: one value each, in the terms of its protocol.

Every kind of point says where its value is, what it is worth (scale, sign, unit, codes) and where we know it
from. Drivers read and write points; what a device is asked for, and in which order, its profile says.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

# A register's address is 16 bit, and so is a Modbus register.
MAX_ADDRESS = 0xFFFF
# The protocol carries at most 125 registers an answer (Modbus Application Protocol V1.1b3, 6.3).
MAX_READ = 125

# What a device holds or is told, in the unit of its point.
Value = float | str | None


class Protocol(StrEnum):
    MODBUS_TCP = "modbus_tcp"
    # Over a serial port, or as the same frames on a TCP socket to a serial device server.
    MODBUS_RTU = "modbus_rtu"
    MQTT = "mqtt"
    XML_DA = "xml_da"
    HTTP = "http"
    # Other devices of the same node, taken as one.
    PROXY = "proxy"
    # No device at all: a plant that lives in the node.
    DEMO = "demo"

    @property
    def is_modbus(self) -> bool:
        return self in (Protocol.MODBUS_TCP, Protocol.MODBUS_RTU)

    @property
    def has_url(self) -> bool:
        """Tell whether its devices are reached by a URL, rather than by host, port and unit."""
        return self in (Protocol.MQTT, Protocol.XML_DA, Protocol.HTTP)

    @property
    def is_inside(self) -> bool:
        """Tell whether its devices are no hardware of their own, and have no address."""
        return self in (Protocol.PROXY, Protocol.DEMO)


class Table(StrEnum):
    HOLDING = "holding"
    INPUT = "input"
    # Single bits: a point of `length` of them is a whole number whose lowest bit is the first address.
    COIL = "coil"
    DISCRETE = "discrete"

    @property
    def is_bits(self) -> bool:
        return self in (Table.COIL, Table.DISCRETE)

    @property
    def read_only(self) -> bool:
        return self in (Table.INPUT, Table.DISCRETE)


class RegisterType(StrEnum):
    U16 = "u16"
    S16 = "s16"
    U32 = "u32"
    S32 = "s32"
    U64 = "u64"
    S64 = "s64"
    F32 = "f32"
    F64 = "f64"
    STR = "str"
    BITS = "bits"


REGISTERS = {
    RegisterType.U16: 1,
    RegisterType.S16: 1,
    RegisterType.U32: 2,
    RegisterType.S32: 2,
    RegisterType.U64: 4,
    RegisterType.S64: 4,
    RegisterType.F32: 2,
    RegisterType.F64: 4,
}
FLOATS = (RegisterType.F32, RegisterType.F64)


class WordOrder(StrEnum):
    """Order of the registers of one value; the bytes inside a register are always big-endian."""

    HIGH_FIRST = "high_first"
    LOW_FIRST = "low_first"


class Access(StrEnum):
    READ = "read"
    WRITE = "write"
    READ_WRITE = "read_write"


class WriteFunction(StrEnum):
    SINGLE = "single"  # function 6, or 5 of a coil
    MULTIPLE = "multiple"  # function 16, or 15 of coils


class Confidence(StrEnum):
    """How well a fact is known."""

    VERIFIED = "verified"  # seen in the source named
    VERIFIED_TWICE = "verified_twice"  # two independent sources agree
    DERIVED = "derived"  # by arithmetic from verified facts
    UNVERIFIED = "unverified"  # common knowledge, or one weak source
    DISPUTED = "disputed"  # sources disagree


class Data(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """Part of a profile."""


class Point(Data, frozen=True, kw_only=True):
    """One value of the device, whatever the protocol.

    value = sign * raw * scale, in `unit`. With `codes` the device has a word or number of its own for each
    value: value -> raw, and whatever is not among them is no value. `doc` is the point as the maker prints
    it. `example` is what a device of this type typically holds: a simulated one starts with it.
    """

    name: str
    source: str
    confidence: Confidence
    doc: str = ""
    access: Access = Access.READ
    scale: float = 1.0
    sign: Literal[1, -1] = 1
    unit: str = ""
    codes: dict[str, float | str] = msgspec.field(default_factory=dict)
    example: float | str | None = None
    note: str = ""

    @property
    def key(self) -> str:
        """Where it is, in words that tell it from every other point behind the same endpoint and unit."""
        raise NotImplementedError

    @property
    def is_text(self) -> bool:
        """Tell whether its value is a text rather than a number."""
        return False

    @property
    def is_dated(self) -> bool:
        """Tell whether its value is known to be no older than its arrival."""
        return True

    @property
    def readable(self) -> bool:
        return self.access is not Access.WRITE

    @property
    def writable(self) -> bool:
        return self.access is not Access.READ


class Register(Point, frozen=True, kw_only=True):
    """One or more Modbus registers, or bits.

    `address` is what goes on the wire, 0-based. Where the profile is a SunSpec one, it counts from the
    register that holds the id of `model` (the first of several that the device has), and the driver finds
    that one. A `scale_point` multiplies by 10 ** its value; `nan` is the raw value that means "no value".
    """

    address: Annotated[int, Meta(ge=0, le=MAX_ADDRESS)]
    type: RegisterType
    model: int | tuple[int, ...] | None = None
    table: Table = Table.HOLDING
    length: Annotated[int, Meta(ge=1, le=MAX_READ)] | None = None
    words: WordOrder = WordOrder.HIGH_FIRST
    write_function: WriteFunction | None = None
    scale_point: str | None = None
    nan: int | None = None

    @property
    def key(self) -> str:
        if self.model is not None:
            return f"model {self.model}:{self.address}"
        return f"{self.table.value}:{self.address}"

    @property
    def is_text(self) -> bool:
        return self.type is RegisterType.STR

    @property
    def count(self) -> int:
        """How many registers (or bits) the value takes."""
        return self.length if self.length is not None else REGISTERS[self.type]

    @property
    def end(self) -> int:
        """The first address behind it."""
        return self.address + self.count

    @property
    def write_single(self) -> bool:
        """Tell whether it is written with function 6 (or 5); the default for a value of one register."""
        if self.write_function is None:
            return self.count == 1
        return self.write_function is WriteFunction.SINGLE


class Message(Point, frozen=True, kw_only=True):
    """A value in an MQTT message, or one that a message tells the device.

    Read: the newest message of `topic`; `path` finds the value in its JSON (`power.ac`, `cells[0].v`; empty:
    the payload itself is it). Written: `payload` is published to `topic`, never retained. In it stand
    `$value` (what is written, in the device's own terms), `$id` (a new UUID), `$now` (RFC 3339, UTC) and
    `$valid_s` (how long it may hold without being repeated); empty: the bare value. With an `ack_topic` the
    write succeeds only once a message there says so: `ack_id` is the path of the command's id in it, `ack_ok`
    of true or false, `ack_reason` of the device's words. `kept`: the device says it once, and the broker
    keeps it (retained): it holds at any age, where everything else counts only while it is new.
    """

    topic: Annotated[str, Meta(min_length=1, max_length=1000)]
    path: str = ""
    text: bool = False
    kept: bool = False
    qos: Literal[0, 1] = 1
    payload: dict[str, Any] | str = ""
    valid_s: Annotated[float, Meta(gt=0)] | None = None
    ack_topic: str = ""
    ack_id: str = "id"
    ack_ok: str = "accepted"
    ack_reason: str = "reason"

    @property
    def key(self) -> str:
        return f"{self.topic} {self.path}".strip()

    @property
    def is_text(self) -> bool:
        return self.text

    @property
    def is_dated(self) -> bool:
        return not self.kept


class XsdType(StrEnum):
    """The types of values which a server is written, of those that XML-DA knows (1.0, 2.7.1)."""

    BOOLEAN = "boolean"
    SHORT = "short"
    INT = "int"
    LONG = "long"
    UNSIGNED_SHORT = "unsignedShort"
    UNSIGNED_INT = "unsignedInt"
    FLOAT = "float"
    DOUBLE = "double"
    STRING = "string"


# What a server says of itself (GetStatus), as if it were items; for checks of who it is.
STATUS_ITEMS = ("$status.ServerState", "$status.StatusInfo", "$status.VendorInfo", "$status.ProductVersion")


class Item(Point, frozen=True, kw_only=True):
    """An item of an OPC XML-DA server: its path and name, and the type that is written to it.

    `item` may also be one of `STATUS_ITEMS`, whose values are texts.
    """

    item: Annotated[str, Meta(min_length=1, max_length=1000)]
    item_path: str = ""
    type: XsdType = XsdType.DOUBLE

    @property
    def key(self) -> str:
        return f"{self.item_path}/{self.item}" if self.item_path else self.item

    @property
    def is_text(self) -> bool:
        return self.type is XsdType.STRING


class Resource(Point, frozen=True, kw_only=True):
    """A value in the JSON that an HTTP server answers, or one that it is sent.

    Read: `GET` of `read_path`, and `path` finds the value in the answer, as for `Message`. Written: `method`
    on `write_path`, with `body` (the same words in it as in `Message.payload`); any 2xx answer is a yes.
    Points of one `read_path` are read with one request. Paths are below the device's URL, and may contain
    `$value`.
    """

    read_path: str = ""
    path: str = ""
    text: bool = False
    method: Literal["PUT", "POST", "PATCH"] = "PUT"
    write_path: str = ""
    body: dict[str, Any] | str = ""
    valid_s: Annotated[float, Meta(gt=0)] | None = None

    @property
    def key(self) -> str:
        return f"{self.write_path or self.read_path} {self.path}".strip()

    @property
    def is_text(self) -> bool:
        return self.text


class Share(Point, frozen=True, kw_only=True):
    """A value of a proxy: what its children have of `reading`, as a sum or a mean weighted by nameplate.

    There is none unless each child whose profile has the reading has a value now. Without `reading` it is
    their setpoint, the one point of a proxy that is written.
    """

    reading: str = ""
    how: Literal["sum", "mean"] = "sum"

    @property
    def key(self) -> str:
        return self.reading or "setpoint"


class Quantity(Point, frozen=True, kw_only=True):
    """A quantity of the plant that a demo device simulates, by the name its machine has for it."""

    quantity: str

    @property
    def key(self) -> str:
        return self.quantity


KINDS: dict[Protocol, type[Point]] = {
    Protocol.MODBUS_TCP: Register,
    Protocol.MODBUS_RTU: Register,
    Protocol.MQTT: Message,
    Protocol.XML_DA: Item,
    Protocol.HTTP: Resource,
    Protocol.PROXY: Share,
    Protocol.DEMO: Quantity,
}
