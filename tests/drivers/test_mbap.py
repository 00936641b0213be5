"""Frames of Modbus TCP: what goes out, and what is made of the bytes that come in."""

from __future__ import annotations

import struct

import pytest
from hypothesis import example, given, strategies as st

from edge.drivers import mbap
from edge.drivers.mbap import Frame, NotModbus
from edge.profiles.points import Table

FUNCTIONS = [1, 2, 3, 4, 5, 6, 15, 16, 0x81, 0x82, 0x83, 0x84, 0x85, 0x86, 0x8F, 0x90]


def as_bytes(frame: Frame) -> bytes:
    return struct.pack(
        ">HHHBB", frame.transaction, 0, 2 + len(frame.data), frame.unit, frame.function
    ) + bytes(frame.data)


frames = st.builds(
    Frame,
    transaction=st.integers(0, 0xFFFF),
    unit=st.integers(0, 0xFF),
    function=st.sampled_from(FUNCTIONS),
    data=st.binary(min_size=1, max_size=mbap.MAX_LENGTH - 2),
)


@st.composite
def streams(draw):
    """Frames, and the pieces in which their bytes arrive."""
    sent = draw(st.lists(frames, max_size=5))
    whole = b"".join(as_bytes(frame) for frame in sent)
    places = sorted(draw(st.sets(st.integers(1, max(1, len(whole) - 1)), max_size=8)))
    pieces = [whole[a:b] for a, b in zip([0, *places], [*places, len(whole)], strict=True)]
    return sent, pieces


@given(streams())
@example(([Frame(1, 1, 3, b"\x02\x00\x2a")], [b"\x00", b"\x01\x00\x00\x00\x05\x01\x03\x02\x00", b"\x2a"]))
def test_frames_come_out_whole_and_in_order_however_their_bytes_arrive(case):
    sent, pieces = case
    came, rest = [], b""

    for piece in pieces:
        whole, rest = mbap.cut(rest + piece)
        came += whole

    assert came == sent
    assert rest == b""


@given(st.binary(max_size=600))
def test_any_bytes_are_frames_or_the_start_of_one_or_refused(received):
    try:
        came, rest = mbap.cut(received)
    except NotModbus:
        return

    assert b"".join(as_bytes(frame) for frame in came) + rest == received
    # What waits for more has an end: a frame is at most 260 bytes.
    assert len(rest) < 6 + mbap.MAX_LENGTH


@given(frames, st.data())
def test_a_frame_that_is_not_yet_whole_is_waited_for(frame, data):
    whole = as_bytes(frame)
    start = whole[: data.draw(st.integers(0, len(whole) - 1))]

    assert mbap.cut(start) == ([], start)


@pytest.mark.parametrize(
    ("received", "why"),
    [
        (b"\x00\x01\x00\x01\x00\x05\x01\x03", "another protocol"),
        (b"\x00\x01\x00\x00\x01\x00\x01\x03", "longer than any frame"),
        (b"\x00\x01\x00\x00\xff\xff\x01\x03", "longer than any frame"),
        (b"\x00\x01\x00\x00\x00\x02\x01\x03", "no data"),
        (b"\x00\x01\x00\x00\x00\x00\x01\x03", "nothing at all"),
        (b"\x00\x01\x00\x00\x00\x05\x01\x55", "a function nobody asked for"),
        (b"HTTP/1.1 400 Bad Request\r\n", "another protocol"),
    ],
)
def test_what_cannot_be_an_answer_is_refused_at_its_header(received, why):
    with pytest.raises(NotModbus):
        mbap.cut(received)


# The examples of Modbus Application Protocol V1.1b3, sections 6.1 to 6.6, 6.11 and 6.12, behind a header.


def test_reading_asks_as_the_specification_prints_it():
    holding = mbap.read_request(0x1501, unit=0xFF, function=3, address=0x6B, count=3)
    inputs = mbap.read_request(0x1501, unit=0xFF, function=4, address=8, count=1)

    assert holding.hex(" ") == "15 01 00 00 00 06 ff 03 00 6b 00 03"
    assert inputs.hex(" ") == "15 01 00 00 00 06 ff 04 00 08 00 01"


def test_writing_asks_as_the_specification_prints_it():
    single = mbap.write_request(1, unit=1, function=6, address=1, registers=[3])
    multiple = mbap.write_request(1, unit=1, function=16, address=1, registers=[0x000A, 0x0102])

    assert single.hex(" ") == "00 01 00 00 00 06 01 06 00 01 00 03"
    assert multiple.hex(" ") == "00 01 00 00 00 0b 01 10 00 01 00 02 04 00 0a 01 02"


def test_registers_are_taken_from_an_answer_of_the_expected_length_only():
    data = bytes.fromhex("06 02 2b 00 00 00 64")

    assert mbap.values_in(data, table=Table.HOLDING, count=3) == [0x022B, 0, 0x64]
    assert mbap.values_in(data, table=Table.HOLDING, count=2) is None
    assert mbap.values_in(data[:-1], table=Table.HOLDING, count=3) is None
    assert mbap.values_in(b"\x04" + data[1:], table=Table.HOLDING, count=3) is None


def test_bits_are_asked_for_and_told_as_the_specification_prints_it():
    coils = mbap.read_request(1, unit=1, function=mbap.READS[Table.COIL], address=0x13, count=0x13)
    inputs = mbap.read_request(1, unit=1, function=mbap.READS[Table.DISCRETE], address=0xC4, count=0x16)
    one = mbap.write_request(1, unit=1, function=5, address=0xAC, registers=[1])
    ten = [1, 0, 1, 1, 0, 0, 1, 1, 1, 0]
    many = mbap.write_request(1, unit=1, function=15, address=0x13, registers=ten)

    assert coils[7:].hex(" ") == "01 00 13 00 13"
    assert inputs[7:].hex(" ") == "02 00 c4 00 16"
    assert one.hex(" ") == "00 01 00 00 00 06 01 05 00 ac ff 00"
    assert many.hex(" ") == "00 01 00 00 00 09 01 0f 00 13 00 0a 02 cd 01"


def test_bits_are_taken_from_an_answer_first_one_lowest():
    data = bytes.fromhex("03 cd 6b 05")  # coils 20 to 38

    bits = mbap.values_in(data, table=Table.COIL, count=19)

    assert bits == [1, 0, 1, 1, 0, 0, 1, 1, 1, 1, 0, 1, 0, 1, 1, 0, 1, 0, 1]
    assert mbap.values_in(data, table=Table.COIL, count=25) is None
    assert mbap.values_in(data[:-1], table=Table.COIL, count=19) is None


@given(st.lists(st.integers(0, 1), min_size=1, max_size=125))
def test_bits_survive_packing(bits):
    packed = mbap.bits_packed(bits)

    assert mbap.values_in(bytes([len(packed)]) + packed, table=Table.COIL, count=len(bits)) == bits
