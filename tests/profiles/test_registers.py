"""Registers to engineering values and back."""

from __future__ import annotations

import math
import struct

import pytest
from hypothesis import example, given, strategies as st

from edge.profiles.points import FLOATS, Access, Confidence, Register, RegisterType, Table, WordOrder
from edge.profiles.registers import decode, encode

INTEGERS = {
    RegisterType.U16: (0, 2**16 - 1),
    RegisterType.S16: (-(2**15), 2**15 - 1),
    RegisterType.U32: (0, 2**32 - 1),
    RegisterType.S32: (-(2**31), 2**31 - 1),
    # A value is a float of 53 bits, and each scaling may cost the last one.
    RegisterType.U64: (0, 2**50),
    RegisterType.S64: (-(2**50), 2**50),
}
SCALES = [1.0, 0.1, 0.01, 0.001, 0.0001, 10.0, 1000.0]


def point(**fields) -> Register:
    given_fields = {"type": RegisterType.U16, **fields}
    return Register(
        name="P",
        source="test",
        confidence=Confidence.VERIFIED,
        address=0,
        access=Access.READ_WRITE,
        **given_fields,
    )


@st.composite
def integer_points(draw):
    kind = draw(st.sampled_from(sorted(INTEGERS)))
    low, high = INTEGERS[kind]
    return (
        point(
            type=kind,
            words=draw(st.sampled_from(WordOrder)),
            scale=draw(st.sampled_from(SCALES)),
            sign=draw(st.sampled_from([1, -1])),
        ),
        draw(st.integers(low, high)),
        draw(st.integers(-3, 3)),
    )


@given(integer_points())
@example((point(type=RegisterType.S32, scale=0.1, words=WordOrder.LOW_FIRST), -1, 0))
def test_every_raw_value_survives_decoding_and_encoding(case):
    the_point, raw, exponent = case
    size = 2 * the_point.count
    words = raw.to_bytes(size, "big", signed=raw < 0)
    registers = [int.from_bytes(words[index : index + 2], "big") for index in range(0, size, 2)]
    if the_point.words is WordOrder.LOW_FIRST:
        registers.reverse()

    value = decode(the_point, registers, exponent=exponent)

    assert encode(the_point, value, exponent=exponent) == registers
    assert value == pytest.approx(the_point.sign * raw * the_point.scale * 10.0**exponent, rel=1e-12)


@given(st.floats(allow_nan=False, allow_infinity=False, width=32), st.sampled_from(WordOrder))
def test_every_float_survives_decoding_and_encoding(number, words):
    the_point = point(type=RegisterType.F32, words=words)

    assert decode(the_point, encode(the_point, number)) == number


@given(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from(WordOrder))
def test_every_double_survives_decoding_and_encoding(number, words):
    the_point = point(type=RegisterType.F64, words=words)

    assert decode(the_point, encode(the_point, number)) == number


@given(st.lists(st.integers(0, 1), min_size=1, max_size=16))
@example([0, 1])
def test_bits_are_a_number_whose_lowest_is_the_first_address(bits):
    the_point = point(type=RegisterType.BITS, table=Table.COIL, length=len(bits))
    number = int("".join(map(str, reversed(bits))), 2)

    assert decode(the_point, bits) == number
    assert encode(the_point, number) == bits


def test_codes_stand_for_values_and_anything_else_for_none():
    modes = point(codes={"0": 3, "100": 1}, scale=0.1)

    assert decode(modes, [3]) == 0
    assert decode(modes, [1]) == 100
    assert decode(modes, [2]) is None
    assert encode(modes, 100) == [1]
    with pytest.raises(ValueError, match="37 is none of 0, 100"):
        encode(modes, 37)


def test_codes_of_a_text_are_words():
    modes = point(type=RegisterType.STR, length=2, codes={"0": "STOP", "1": "RUN"})

    assert decode(modes, encode(modes, 1)) == 1
    assert encode(modes, 0) == [0x5354, 0x4F50]


def test_codes_of_bits_are_patterns():
    # SG Ready: two contacts, four modes.
    modes = point(type=RegisterType.BITS, table=Table.COIL, length=2, codes={"0": 1, "1": 0, "2": 2, "3": 3})

    assert [encode(modes, mode) for mode in (0, 1, 2, 3)] == [[1, 0], [0, 0], [0, 1], [1, 1]]
    assert decode(modes, [1, 0]) == 0


@given(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from(WordOrder))
def test_no_number_is_too_great_to_be_refused(number, words):
    the_point = point(type=RegisterType.S64, words=words)
    if -(2**63) <= round(number) < 2**63:
        assert decode(the_point, encode(the_point, number)) == pytest.approx(number, abs=0.5)
    else:
        with pytest.raises(ValueError, match="outside"):
            encode(the_point, number)


@given(st.floats(0, 100), st.sampled_from([0.1, 0.01, 1.0]))
def test_a_percentage_is_off_by_at_most_half_a_step(percent, scale):
    the_point = point(scale=scale)

    assert decode(the_point, encode(the_point, percent)) == pytest.approx(percent, abs=0.51 * scale)


@pytest.mark.parametrize(
    ("kind", "nan"),
    [
        (RegisterType.U16, 0xFFFF),
        (RegisterType.S16, 0x8000),
        (RegisterType.S16, -32768),
        (RegisterType.S16, 0x7FFF),
        (RegisterType.U32, 0xFFFFFFFF),
        (RegisterType.S32, 0x80000000),
        (RegisterType.S32, 0x7FFFFFFF),
        (RegisterType.U64, 0xFFFFFFFFFFFFFFFF),
        (RegisterType.S64, 0x8000000000000000),
        (RegisterType.U32, 0),
    ],
)
@pytest.mark.parametrize("words", WordOrder)
def test_the_makers_pattern_for_no_value_is_none(kind, nan, words):
    the_point = point(type=kind, nan=nan, words=words, scale=0.1)

    assert decode(the_point, encode(the_point, None)) is None


@pytest.mark.parametrize("kind", FLOATS)
def test_a_float_that_is_no_number_is_none(kind):
    the_point = point(type=kind)

    assert decode(the_point, encode(the_point, None)) is None


def test_an_infinite_float_is_none():
    the_point = point(type=RegisterType.F32)

    assert decode(the_point, list(struct.unpack(">HH", struct.pack(">f", math.inf)))) is None


def test_low_word_first_turns_the_registers_and_not_the_bytes():
    assert encode(point(type=RegisterType.U32, words=WordOrder.LOW_FIRST), 0x12345678) == [0x5678, 0x1234]
    assert encode(point(type=RegisterType.U32), 0x12345678) == [0x1234, 0x5678]


def test_tenths_come_out_as_people_write_them():
    assert decode(point(scale=0.1), [3]) == 0.3
    assert decode(point(), [3], exponent=-1) == 0.3


def test_text_ends_at_its_padding():
    the_point = point(type=RegisterType.STR, length=4)

    assert decode(the_point, encode(the_point, "SMA")) == "SMA"
    assert decode(the_point, [0, 0, 0, 0]) is None
    with pytest.raises(ValueError, match="more than 8 characters"):
        encode(the_point, "SMA Solar Technology")


@pytest.mark.parametrize(
    ("the_point", "value", "message"),
    [
        (point(), 65536, "outside 0 to 65535"),
        (point(), -1, "outside 0 to 65535"),
        (point(nan=0xFFFF), 65535, "means 'no value'"),
        (point(), math.nan, "not a finite number"),
        (point(type=RegisterType.F32), 1e39, "does not fit a 32-bit float"),
        (point(), None, "cannot say 'no value'"),
        (point(), "much", "is a text"),
        (point(type=RegisterType.S64), 2**63, "outside"),
        (point(type=RegisterType.BITS, table=Table.COIL, length=2), 4, "outside 0 to 3"),
        (point(type=RegisterType.BITS, table=Table.COIL, length=2), None, "cannot say 'no value'"),
    ],
)
def test_what_a_register_cannot_hold_is_never_written(the_point, value, message):
    with pytest.raises(ValueError, match=message):
        encode(the_point, value)
