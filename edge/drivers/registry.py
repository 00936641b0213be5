"""Protocol name -> how to open a session and a driver."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from edge.drivers.base import Driver, Session
from edge.drivers.demo import DemoDriver, DemoSession
from edge.drivers.http_json import HttpDriver, HttpSession
from edge.drivers.modbus import ModbusDriver, ModbusSession
from edge.drivers.modbus_rtu import RtuOverTcpSession, SerialSession
from edge.drivers.mqtt import MqttDriver, MqttSession
from edge.drivers.xml_da import XmlDaDriver, XmlDaSession
from edge.profiles.points import Protocol


@dataclass(frozen=True, slots=True)
class Constructors:
    """How to build both ends of a protocol.

    `session` takes what `Endpoint.arguments` has (host and port; url, username and password; or nothing where
    the device lives in the node), and timeout_s, min_gap_s, clock and sleep; over Modbus also
    connect_delay_s. `serial_session` takes line in place of host and port, and no delay; None where the
    protocol has no serial lines. `driver` takes session, profile, unit and nameplate_kw. All by keyword, as
    `ModbusSession` and `ModbusDriver` do.
    """

    session: Callable[..., Session]
    driver: Callable[..., Driver]
    serial_session: Callable[..., Session] | None = None


# The table a node is given; a simulated plant brings one of its own.
Drivers = Mapping[Protocol, Constructors]

DRIVERS: Drivers = {
    Protocol.MODBUS_TCP: Constructors(session=ModbusSession, driver=ModbusDriver),
    Protocol.MODBUS_RTU: Constructors(
        session=RtuOverTcpSession, driver=ModbusDriver, serial_session=SerialSession
    ),
    Protocol.MQTT: Constructors(session=MqttSession, driver=MqttDriver),
    Protocol.DEMO: Constructors(session=DemoSession, driver=DemoDriver),
    Protocol.XML_DA: Constructors(session=XmlDaSession, driver=XmlDaDriver),
    Protocol.HTTP: Constructors(session=HttpSession, driver=HttpDriver),
}
