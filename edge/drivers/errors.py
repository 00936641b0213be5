"""What can go wrong with a device.

DriverError
├── DeviceUnreachable   no connection, no answer, or an answer that cannot be read: try again
│   └── DeviceAway      the same, and what leads to it is sound: nothing is gained by connecting anew
├── DeviceRefused       the device answered, and the answer is no: do not try again unchanged
└── ReadingInvalid      it answered with something that means nothing: disregard
"""

from __future__ import annotations


class DriverError(Exception):
    """The message is for the person who looks after the device."""


class DeviceUnreachable(DriverError):  # noqa: N818 - states the fault
    """No connection, no answer in time, or a broken one. Whether a write took effect is not known."""


class DeviceAway(DeviceUnreachable):
    """Nothing of it, though what it is reached by answers: a broker, a gateway, another device."""


class DeviceRefused(DriverError):  # noqa: N818 - states the fault
    """The device answered no, or is not the device it should be."""


class ReadingInvalid(DriverError):  # noqa: N818 - states the fault
    """What was read cannot be turned into a value."""
