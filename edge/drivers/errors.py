"""What can go wrong with a device.

DriverError
├── DeviceUnreachable   no connection, no answer, or an answer that cannot be read: try again
├── DeviceRefused       the device answered, and the answer is no: do not try again unchanged
└── ReadingInvalid      it answered with something that means nothing: disregard
"""

from __future__ import annotations


class DriverError(Exception):
    """The message is for the person who looks after the device."""


class DeviceUnreachable(DriverError):  # noqa: N818 - states the fault
    """No connection, no answer in time, or a broken one. Whether a write took effect is not known."""


class DeviceRefused(DriverError):  # noqa: N818 - states the fault
    """The device answered no, or is not the device it should be."""


class ReadingInvalid(DriverError):  # noqa: N818 - states the fault
    """What was read cannot be turned into a value."""
