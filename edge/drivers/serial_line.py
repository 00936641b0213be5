"""A serial port of this computer: its settings, how long frames take on it, and how it is opened."""

from __future__ import annotations

import fcntl
import os
import termios
from dataclasses import dataclass

from edge.drivers.errors import DeviceUnreachable
from edge.profiles.model import Parity

# Frames are told apart by this much silence; above 19200 baud it is fixed, or serving it would take the
# whole processor (Modbus over Serial Line V1.02, 2.5.1.1).
SILENT_CHARACTERS = 3.5
SILENCE_FAST_S = 0.00175
FAST_BAUD_RATE = 19200

# Device numbers of the far ends of pseudo-terminals (Documentation/admin-guide/devices.txt of Linux).
PSEUDO_TERMINALS = range(136, 144)

# Places in what tcgetattr gives.
_IFLAG, _OFLAG, _CFLAG, _LFLAG, _ISPEED, _OSPEED, _CC = range(7)


@dataclass(frozen=True, slots=True)
class SerialSettings:
    """A port and how the line behind it is set: a rate of `edge.profiles.address`, eight data bits."""

    port: str
    baud_rate: int = 9600
    parity: Parity = Parity.NONE
    stop_bits: int = 1

    @property
    def character_s(self) -> float:
        """How long one character takes: start bit, eight data bits, parity, stop bits."""
        return (9 + (self.parity is not Parity.NONE) + self.stop_bits) / self.baud_rate

    @property
    def silence_s(self) -> float:
        """How long the line is left alone between two frames."""
        if self.baud_rate > FAST_BAUD_RATE:
            return SILENCE_FAST_S
        return SILENT_CHARACTERS * self.character_s

    def __str__(self) -> str:
        return f"{self.baud_rate} baud 8{self.parity.value[0].upper()}{self.stop_bits}"


def open_port(settings: SerialSettings) -> int:
    """Open and set up a port for this process alone; its descriptor, which does not block.

    `DeviceUnreachable` where there is no such port, it cannot be set up as wanted, or another program has it.
    """
    try:
        descriptor = os.open(settings.port, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise DeviceUnreachable(f"cannot open {settings.port}: {os.strerror(error.errno or 0)}") from error
    try:
        _set_up(descriptor, settings)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _set_up(descriptor: int, settings: SerialSettings) -> None:
    # A path that a configuration names may be anything; nothing is sent to what is no serial port.
    if not os.isatty(descriptor):
        raise DeviceUnreachable(f"{settings.port} is not a serial port")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise DeviceUnreachable(f"another program has {settings.port} open") from error
    try:
        attributes = termios.tcgetattr(descriptor)
        speed = getattr(termios, f"B{settings.baud_rate}")
        attributes[_IFLAG] = attributes[_OFLAG] = attributes[_LFLAG] = 0
        attributes[_CFLAG] = control_flags(settings)
        if os.major(os.fstat(descriptor).st_rdev) in PSEUDO_TERMINALS:
            # They have no parity, and setting it is an error.
            attributes[_CFLAG] &= ~(termios.PARENB | termios.PARODD)
        attributes[_ISPEED] = attributes[_OSPEED] = speed
        attributes[_CC][termios.VMIN], attributes[_CC][termios.VTIME] = 1, 0
        termios.tcsetattr(descriptor, termios.TCSANOW, attributes)
        termios.tcflush(descriptor, termios.TCIOFLUSH)
    except (termios.error, AttributeError) as error:
        raise DeviceUnreachable(f"cannot set {settings.port} to {settings}: {error}") from error


def control_flags(settings: SerialSettings) -> int:
    """The line's `c_cflag` of termios(3), but for its speed."""
    # Not HUPCL: some converters draw their power from the modem lines that closing would drop.
    flags = termios.CREAD | termios.CLOCAL | termios.CS8
    if settings.parity is not Parity.NONE:
        # A character that fails its parity check still comes through (INPCK is off): the CRC judges.
        flags |= termios.PARENB
    if settings.parity is Parity.ODD:
        flags |= termios.PARODD
    if settings.stop_bits > 1:
        flags |= termios.CSTOPB
    return flags
