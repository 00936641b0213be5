"""The messages of XML-DA: what we send keeps to the specification's schema, and what comes in is judged."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st
from lxml import etree

from edge.drivers import xml_da_messages as messages
from edge.drivers.xml_da_messages import SOAP, XML_DA, Address, Fault, NotXmlDa
from edge.profiles.points import Confidence, Item, XsdType

SCHEMA = etree.XMLSchema(etree.parse(Path(__file__).parent / "data" / "xml_da" / "xml_da_1_0.xsd"))
POWER = Address("", "WEC/Power")
LIMIT = Address("Park & Söhne", 'Limit "A" <1>')

REQUESTS = {
    "GetStatus": messages.get_status_request(),
    "Read": messages.read_request([POWER, LIMIT]),
    "Write": messages.write_request([(LIMIT, XsdType.DOUBLE, "37.5"), (POWER, XsdType.BOOLEAN, "true")]),
    "Subscribe": messages.subscribe_request([POWER, LIMIT], sampling_ms=1000, ping_ms=60_000),
    "SubscriptionPolledRefresh": messages.refresh_request("a&b"),
    "SubscriptionCancel": messages.cancel_request("a&b"),
    "Browse": messages.browse_request(LIMIT, continuation="<more>", at_most=100),
    "GetProperties": messages.get_properties_request([POWER, LIMIT]),
}


def message_in(data: bytes) -> etree._Element:
    """The one message in an envelope, taken out as its own document."""
    envelope = etree.fromstring(data)
    assert envelope.tag == f"{{{SOAP}}}Envelope"
    (body,) = envelope
    assert body.tag == f"{{{SOAP}}}Body"
    (message,) = body
    return etree.fromstring(etree.tostring(message))


def the(parent: etree._Element, path: str) -> etree._Element:
    found = parent.find(path)
    assert found is not None
    return found


def answer(body: str, *, prefixes: str = "") -> bytes:
    return (
        f'<s:Envelope xmlns:s="{SOAP}" xmlns="{XML_DA}" xmlns:x="http://www.w3.org/2001/XMLSchema"'
        f' xmlns:i="http://www.w3.org/2001/XMLSchema-instance" xmlns:da="{XML_DA}" {prefixes}>'
        f"<s:Body>{body}</s:Body></s:Envelope>"
    ).encode()


RESULT = '<ReadResult RcvTime="2026-06-01T10:00:00Z" ReplyTime="2026-06-01T10:00:01.2500000Z" ServerState="running"/>'


def read(items: str, errors: str = "") -> list[messages.ItemReply]:
    data = answer(f"<ReadResponse>{RESULT}<RItemList>{items}</RItemList>{errors}</ReadResponse>")
    SCHEMA.assertValid(message_in(data))
    return messages.read_answer(data)[1]


@pytest.mark.parametrize("operation", sorted(REQUESTS))
def test_every_request_keeps_to_the_schema_of_the_specification(operation):
    message = message_in(REQUESTS[operation])

    SCHEMA.assertValid(message)
    assert message.tag == f"{{{XML_DA}}}{operation}"


def test_a_value_that_is_no_value_of_its_type_breaks_the_schema():
    # Or the schema would say nothing about what we write.
    data = messages.write_request([(POWER, XsdType.DOUBLE, "full power")])

    assert not SCHEMA.validate(message_in(data))


def test_names_with_markup_in_them_arrive_as_they_are():
    item = the(message_in(REQUESTS["Write"]), f".//{{{XML_DA}}}Items")

    assert item.get("ItemName") == 'Limit "A" <1>'
    assert item.get("ItemPath") == "Park & Söhne"


def test_reads_ask_for_the_devices_own_newest_values_their_names_and_times():
    message = message_in(REQUESTS["Read"])

    assert the(message, f"{{{XML_DA}}}ItemList").get("MaxAge") == "0"
    options = the(message, f"{{{XML_DA}}}Options")
    assert (options.get("ReturnItemName"), options.get("ReturnItemTime")) == ("true", "true")


@pytest.mark.parametrize(
    ("kind", "text", "raw"),
    [
        ("double", "48.25", 48.25),
        ("float", " 1e3 ", 1000.0),
        ("int", "-7", -7.0),
        ("unsignedLong", "18446744073709551615", 2.0**64),
        ("decimal", "3.10", 3.1),
        ("boolean", "1", 1.0),
        ("boolean", "false", 0.0),
        ("string", "WEC 7", "WEC 7"),
        ("string", "a &lt; &amp;amp; &#228;<![CDATA[&lt;]]>", "a < &amp; ä&lt;"),
        ("dateTime", "2026-06-01T10:00:00Z", "2026-06-01T10:00:00Z"),
        ("double", "NaN", None),
        ("float", "INF", None),
    ],
)
def test_values_are_read_by_their_type(kind, text, raw):
    (item,) = read(f'<Items ItemName="a"><Value i:type="x:{kind}">{text}</Value></Items>')

    assert item.raw == raw


def test_names_with_references_in_them_are_read_as_they_are_meant():
    (one,) = read('<Items ItemName="Park &amp; S&#246;hne &lt;1&gt; &quot;&apos;"/>')

    assert one.name == """Park & Söhne <1> "'"""


def test_a_number_that_is_none_is_no_value_and_not_zero():
    data = answer(
        f'<ReadResponse>{RESULT}<RItemList><Items><Value i:type="x:int">many</Value></Items></RItemList></ReadResponse>'
    )

    assert messages.read_answer(data)[1][0].raw is None


def test_types_are_resolved_by_the_prefixes_of_the_document_and_not_by_their_spelling():
    foreign = '<Value i:type="xsd:double" xmlns:xsd="urn:something-else">1</Value>'
    own = '<Value i:type="double" xmlns="http://www.w3.org/2001/XMLSchema">2</Value>'
    local = '<Value i:type="q:double" xmlns:q="http://www.w3.org/2001/XMLSchema">3</Value>'

    data = answer(
        f"<ReadResponse>{RESULT}<RItemList><Items>{foreign}</Items><Items>{local}</Items></RItemList></ReadResponse>"
    )

    assert [item.raw for item in messages.read_answer(data)[1]] == ["1", 3.0]
    # The default namespace holds for types as well, and here it takes the element with it.
    assert b"XMLSchema" in own.encode()


def test_a_value_without_quality_is_good():
    with_none, with_empty, bad, overridden = read(
        '<Items><Value i:type="x:int">1</Value></Items>'
        '<Items><Value i:type="x:int">1</Value><Quality LimitField="high"/></Items>'
        '<Items><Value i:type="x:int">1</Value><Quality QualityField="badLastKnownValue"/></Items>'
        '<Items><Value i:type="x:int">1</Value><Quality QualityField="goodLocalOverride"/></Items>'
    )

    assert [one.is_good for one in (with_none, with_empty, bad, overridden)] == [True, True, False, True]


def test_an_array_or_a_nil_is_no_value():
    array, nil = read(
        '<Items><Value i:type="da:ArrayOfInt"><int>1</int><int>2</int></Value></Items>'
        '<Items><Value i:nil="true"/></Items>'.replace(' i:nil="true"', ' i:type="x:string"')
    )

    assert (array.raw, nil.raw) == (None, "")
    data = answer(
        f'<ReadResponse>{RESULT}<RItemList><Items><Value i:nil="1"/></Items></RItemList></ReadResponse>'
    )
    assert messages.read_answer(data)[1][0].raw is None


def test_an_items_error_comes_with_the_servers_words():
    unknown, clamped = read(
        '<Items ItemName="a" ResultID="da:E_UNKNOWNITEMNAME"/><Items ItemName="b" ResultID="da:S_CLAMP"/>',
        '<Errors ID="da:E_UNKNOWNITEMNAME"><Text>no such\n item</Text></Errors>',
    )

    assert (unknown.failed, unknown.result, unknown.text) == (True, "E_UNKNOWNITEMNAME", "no such item")
    assert (clamped.failed, clamped.result, clamped.text) == (False, "S_CLAMP", "")


def test_times_with_seven_digits_of_a_second_are_read():
    data = answer(f"<ReadResponse>{RESULT}</ReadResponse>")

    reply, items = messages.read_answer(data)

    assert reply.replied == datetime(2026, 6, 1, 10, 0, 1, 250_000, tzinfo=UTC)
    assert (reply.state, items) == ("running", [])


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("da:E_SERVERSTATE", (XML_DA, "E_SERVERSTATE")),
        ("s:Client", (SOAP, "Client")),
        ("odd", (XML_DA, "odd")),
    ],
)
def test_a_fault_names_its_code_by_the_documents_prefixes(code, expected):
    data = answer(
        f'<s:Fault><faultcode xmlns="">{code}</faultcode><faultstring xmlns="">not now</faultstring></s:Fault>'
        if code != "odd"
        else "<s:Fault><faultcode>odd</faultcode><faultstring>not now</faultstring></s:Fault>"
    )

    with pytest.raises(Fault, match="not now") as caught:
        messages.read_answer(data)
    assert (caught.value.namespace, caught.value.code) == expected


BOMB = (
    '<!DOCTYPE bomb [<!ENTITY a "ha">'
    + "".join(f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefghi", "bcdefghij", strict=True))
    + "]><s:Envelope xmlns:s='urn:x'>&j;</s:Envelope>"
)
OUTSIDE = "<!DOCTYPE x [<!ENTITY file SYSTEM 'file:///etc/hostname'>]><x>&file;</x>"
QUADRATIC = f"<!DOCTYPE x [<!ENTITY a '{'a' * 50_000}'>]><x>{'&a;' * 50_000}</x>"


@pytest.mark.parametrize(
    "data",
    [
        BOMB.encode(),
        BOMB.encode("utf-16"),
        OUTSIDE.encode(),
        OUTSIDE.encode("utf-16"),
        QUADRATIC.encode(),
        b"<!DOCTYPE x SYSTEM 'http://127.0.0.1:9/x.dtd'><x/>",
        b"<!DOCTYPE x><x/>",
    ],
    ids=["bomb", "bomb in utf-16", "file", "file in utf-16", "quadratic", "outside DTD", "bare DTD"],
)
def test_a_document_type_is_refused_before_anything_in_it_acts(data):
    with pytest.raises(NotXmlDa, match="DTD"):
        messages.read_answer(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\xff\x80 garbage",
        b"<html><body>Login</body></html>",
        b"<a>" * 100 + b"</a>" * 100,
        b"<a>" * 100_000,
        b"<a>" + b"<b/>" * 60_000 + b"</a>",
        b"<a " + b" ".join(b"a%d=''" % number for number in range(200_000)) + b"/>",
        b"<a " + b" ".join(b"xmlns:a%d='x'" % number for number in range(200_000)) + b"/>",
        b"<a>&undefined;</a>",
        answer("<ReadResponse/>"),
        answer("<WriteResponse/>"),
        answer(""),
        answer(f"<ReadResponse>{RESULT}</ReadResponse>")[:-20],
        answer(f"<ReadResponse>{RESULT}</ReadResponse>").replace(XML_DA.encode(), b"urn:another"),
        answer(f"<ReadResponse>{RESULT}</ReadResponse>").replace(
            SOAP.encode(), b"http://www.w3.org/2003/05/soap-envelope"
        ),
    ],
    ids=[
        "nothing",
        "garbage",
        "html",
        "deep",
        "very deep",
        "wide",
        "attributes",
        "prefixes",
        "entity",
        "no state",
        "other operation",
        "empty body",
        "half",
        "other namespace",
        "SOAP 1.2",
    ],
)
def test_whatever_is_no_answer_is_soon_said_to_be_none(data):
    began = time.process_time()

    with pytest.raises(NotXmlDa):
        messages.read_answer(data)
    # Devices share a process: what one sends must not hold up the others.
    assert time.process_time() - began < 1


PLAIN = answer(
    f'<ReadResponse>{RESULT}<RItemList><Items ItemName="a" ClientItemHandle="0" ResultID="da:S_CLAMP"'
    ' Timestamp="2026-06-01T10:00:00Z"><Value i:type="x:double">5</Value><Quality QualityField="good"/></Items>'
    '</RItemList><Errors ID="da:S_CLAMP"><Text>clamped</Text></Errors></ReadResponse>'
)
DECLARED = b'<?xml version="1.0" encoding="utf-8"?>' + PLAIN
PLACES = st.integers(0, len(DECLARED))
CHANGES = st.lists(
    st.tuples(PLACES, st.integers(0, 40), st.one_of(st.binary(max_size=6), st.sampled_from(
        [b"<", b"</", b"&", b"&#0;", b"]]>", b"<!DOCTYPE a>", b"<![CDATA[", b"xmlns:da=''", b"utf-16", b"ucs4", b"\0"]
    ))),
    min_size=1,
    max_size=4,
)  # fmt: skip


@given(changes=CHANGES)
@settings(max_examples=300, deadline=None)
def test_however_an_answer_is_spoiled_it_is_an_answer_or_none(changes):
    data = DECLARED
    for place, length, text in changes:
        data = data[:place] + text + data[place + length :]

    try:
        reply, items = messages.read_answer(data)
    except (NotXmlDa, Fault):
        return

    assert isinstance(reply.state, str)
    assert all(item.raw is None or isinstance(item.raw, float | str) for item in items)


def test_comments_and_instructions_between_the_parts_change_nothing():
    data = answer(
        f"<!-- hello --><ReadResponse><?php echo 1 ?>{RESULT}<RItemList><Items><Value i:type='x:int'>4<!-- 2 -->2"
        "</Value></Items></RItemList></ReadResponse>"
    )

    assert messages.read_answer(data)[1][0].raw == 42


def test_a_subscriptions_values_lie_one_level_deeper():
    result = RESULT.replace("ReadResult", "SubscribeResult")
    data = answer(
        f'<SubscribeResponse ServerSubHandle="7">{result}<RItemList><Items RevisedSamplingRate="500">'
        '<ItemValue ClientItemHandle="0"><Value i:type="x:int">5</Value></ItemValue></Items></RItemList>'
        "</SubscribeResponse>"
    )
    SCHEMA.assertValid(message_in(data))

    subscribed = messages.subscribe_answer(data)

    assert (subscribed.handle, [item.raw for item in subscribed.items]) == ("7", [5.0])


def test_a_refresh_tells_what_changed_and_whether_the_subscription_is_known():
    result = RESULT.replace("ReadResult", "SubscriptionPolledRefreshResult")
    data = answer(
        f"<SubscriptionPolledRefreshResponse>{result}<InvalidServerSubHandles>8</InvalidServerSubHandles>"
        '<RItemList SubscriptionHandle="7"><Items ClientItemHandle="0"><Value i:type="x:int">5</Value></Items>'
        '</RItemList><RItemList SubscriptionHandle="9"><Items/></RItemList></SubscriptionPolledRefreshResponse>'
    )
    SCHEMA.assertValid(message_in(data))

    known, unknown = (messages.refresh_answer(data, subscription=one) for one in ("7", "8"))

    assert ([item.raw for item in known.items], known.lost) == ([5.0], False)
    assert (unknown.items, unknown.lost) == ([], True)


def item(kind: XsdType) -> Item:
    return Item(name="limit", source="test", confidence=Confidence.UNVERIFIED, item="limit", type=kind)


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        (XsdType.DOUBLE, 37.0, "37.0"),
        (XsdType.FLOAT, 0.1, "0.1"),
        (XsdType.INT, 36.6, "37"),
        (XsdType.BOOLEAN, 1, "true"),
        (XsdType.STRING, "PAUSE", "PAUSE"),
        (XsdType.STRING, 37.0, "37"),
        (XsdType.UNSIGNED_SHORT, 65535, "65535"),
    ],
)
def test_values_are_written_in_the_type_of_their_item(kind, value, text):
    written = messages.raw_text(item(kind), value)

    assert written == text
    SCHEMA.assertValid(message_in(messages.write_request([(POWER, kind, written)])))


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (XsdType.UNSIGNED_SHORT, -1),
        (XsdType.SHORT, 40_000),
        (XsdType.BOOLEAN, 2),
        (XsdType.FLOAT, 1e39),
        (XsdType.DOUBLE, float("nan")),
        (XsdType.DOUBLE, None),
        (XsdType.STRING, "bell \a"),
    ],
)
def test_a_value_that_does_not_fit_its_type_is_not_written(kind, value):
    with pytest.raises(ValueError):
        messages.raw_text(item(kind), value)
