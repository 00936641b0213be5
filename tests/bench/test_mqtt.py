"""The benchmarks' own packet codec against a real broker, for what measures others must be right itself."""

from __future__ import annotations

import socket

import pytest

from bench import mqtt
from edge.wire.topics import NodeTopics

NODE = "0b0e7a52-5c5b-4a3b-9d0e-5a4f1f0a7c11"
TOPICS = NodeTopics("tenant-123", NODE)


@pytest.fixture
def node(broker):
    """A node's open connection: send bytes, read packets."""
    password = broker.add_user(NODE)
    with socket.create_connection((broker.host, broker.port), timeout=5) as connection:
        reader = mqtt.Reader()

        def read() -> list[mqtt.Publish | mqtt.Acknowledged]:
            packets: list[mqtt.Publish | mqtt.Acknowledged] = []
            while not packets:
                # A few bytes at a time, so that packets come in pieces.
                packets += reader.feed(connection.recv(7))
            return packets

        connection.sendall(
            mqtt.connect(client="t", username=NODE, password=password, keep_alive_s=15, session_expiry_s=0)
        )
        assert [packet.kind for packet in read() if isinstance(packet, mqtt.Acknowledged)] == [mqtt.CONNACK]
        yield connection, read


def test_published_document_comes_back_whole_to_its_subscriber(broker, node):
    connection, read = node
    connection.sendall(mqtt.subscribe(TOPICS.desired, packet=1))
    (answer,) = read()
    assert answer == mqtt.Acknowledged(mqtt.SUBACK, 1, b"\x01")
    payload = b"x" * 300
    with socket.create_connection((broker.host, broker.port), timeout=5) as central:
        central.sendall(
            mqtt.connect(
                client="c",
                username="central-worker",
                password=broker.passwords["central-worker"],
                keep_alive_s=15,
                session_expiry_s=0,
            )
        )
        document = TOPICS.document("config").encode()
        central.sendall(mqtt.publish(document, payload, packet=1, retain=True, expiry_s=60))
        (message,) = read()
    assert isinstance(message, mqtt.Publish)
    assert (message.topic, message.payload, message.packet) == (document.decode(), payload, 1)


def test_refused_publication_is_told_from_one_that_was_taken(node):
    connection, read = node
    connection.sendall(mqtt.publish(TOPICS.presence.encode(), b"{}", packet=1))
    (taken,) = read()
    connection.sendall(mqtt.publish(TOPICS.document("config").encode(), b"{}", packet=2))
    (refused,) = read()
    assert isinstance(taken, mqtt.Acknowledged)
    assert isinstance(refused, mqtt.Acknowledged)
    assert (taken.packet, taken.is_refused) == (1, False)
    assert (refused.packet, refused.is_refused) == (2, True)
