"""One session with a real broker: what is said when it is there, away, and back."""

from __future__ import annotations

import queue
import signal
import threading
import uuid

import pytest

from edge.wire import session as wire
from edge.wire.topics import NodeTopics
from sites_app.node_link import (
    BrokerConnection,
    CommandMessage,
    LinkUnavailable,
    MqttNodeLink,
    SendUnconfirmed,
)
from sites_app.publishing import DesiredMessage
from tests.servers import mosquitto_broker, until

WITHIN_S = 5.0


def as_worker(broker) -> wire.Broker:
    return wire.Broker(broker.host, broker.port, "central-worker", broker.passwords["central-worker"])


@pytest.fixture
def link(broker):
    link = MqttNodeLink(as_worker(broker))
    yield link
    link.stop()


@pytest.fixture
def topics() -> NodeTopics:
    return NodeTopics("tenant-123", str(uuid.uuid4()))


def node_connection(broker, topics, *, heard) -> BrokerConnection:
    identity = wire.Broker(broker.host, broker.port, topics.node, broker.add_user(topics.node))
    connection = BrokerConnection(
        identity,
        identifier=topics.node,
        subscriptions=(topics.commands, topics.desired),
        on_message=heard.put,
    )
    connection.start()
    assert connection.wait_connected(WITHIN_S)
    return connection


@pytest.fixture
def node(broker, topics):
    """What a node of these topics hears, and its session."""
    heard: queue.SimpleQueue[wire.Incoming] = queue.SimpleQueue()
    connection = node_connection(broker, topics, heard=heard)
    yield connection, heard
    connection.stop()


def test_command_reaches_its_node_with_the_way_back(link, node, topics):
    assert link.is_up
    link.send(topics, "setpoint", b"payload", command_id="c1", ttl_s=5)
    message = node[1].get(timeout=WITHIN_S)
    assert (message.topic, message.payload, message.retain) == (
        topics.command("setpoint"),
        b"payload",
        False,
    )
    assert (message.response_topic, message.correlation) == (topics.response(link.worker), b"c1")


def test_answer_comes_with_the_node_whose_branch_it_came_on(link, node, topics):
    answers: queue.SimpleQueue[tuple[NodeTopics, bytes]] = queue.SimpleQueue()
    link.results(lambda whose, payload: answers.put((whose, payload)))
    assert link.is_up
    node[0].publish(topics.response(link.worker), b"done")
    assert answers.get(timeout=WITHIN_S) == (topics, b"done")


def test_answers_to_another_worker_are_not_heard(link, node, topics):
    answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    link.results(lambda _whose, payload: answers.put(payload))
    assert link.is_up
    node[0].publish(topics.response("another"), b"not for us")
    node[0].publish(topics.response(link.worker), b"for us")
    assert answers.get(timeout=WITHIN_S) == b"for us"


def test_desired_document_stays_for_a_node_that_comes_later(broker, link, topics):
    link.put_desired([DesiredMessage(topics, "config", b"body")])
    heard: queue.SimpleQueue[wire.Incoming] = queue.SimpleQueue()
    connection = node_connection(broker, topics, heard=heard)
    message = heard.get(timeout=WITHIN_S)
    connection.stop()
    assert (message.payload, message.retain) == (b"body", True)


def test_thousand_documents_arrive_in_their_order(link, node, topics):
    link.put_desired([DesiredMessage(topics, f"schedule/{number}", b"{}", 60) for number in range(1000)])
    heard = [node[1].get(timeout=WITHIN_S).topic for _ in range(1000)]
    assert heard == [topics.document(f"schedule/{number}") for number in range(1000)]


def test_each_of_many_commands_has_a_correlation_of_its_own(link, node, topics):
    link.send_all([CommandMessage(topics, "ping", b"{}", f"c{number}", 5) for number in range(3)])
    assert [node[1].get(timeout=WITHIN_S).correlation for _ in range(3)] == [b"c0", b"c1", b"c2"]


def test_document_that_the_broker_refuses_is_not_taken_for_published(broker, topics):
    # The inbox may not command: its access list says so.
    identity = wire.Broker(broker.host, broker.port, "central-inbox", broker.passwords["central-inbox"])
    connection = BrokerConnection(identity, identifier="t", subscriptions=(), on_message=print)
    connection.start()
    try:
        assert connection.wait_connected(WITHIN_S)
        allowed = wire.Outgoing(topic=topics.log_ack, payload=b"{}")
        connection.publish_all([allowed])
        with pytest.raises(SendUnconfirmed, match="Not authorized"):
            connection.publish_all([allowed, wire.Outgoing(topic=topics.command("ping"), payload=b"{}")])
    finally:
        connection.stop()


def test_without_a_broker_nothing_is_sent_and_that_is_said(topics):
    link = MqttNodeLink(wire.Broker("127.0.0.1", 1))
    assert not link.is_up
    with pytest.raises(LinkUnavailable):
        link.send(topics, "setpoint", b"", command_id="c1", ttl_s=1)
    with pytest.raises(LinkUnavailable):
        link.put_desired([DesiredMessage(topics, "config", b"")])
    link.stop()
    link.stop()


def test_wrong_password_is_no_session(broker):
    link = MqttNodeLink(wire.Broker(broker.host, broker.port, "central-worker", "wrong"))
    assert not link.is_up
    link.stop()


def test_broker_that_hangs_leaves_it_open_whether_it_was_sent(topics, monkeypatch):
    monkeypatch.setattr("sites_app.node_link.PUBLISH_TIMEOUT_S", 0.2)
    with mosquitto_broker() as broker:
        link = MqttNodeLink(as_worker(broker))
        assert link.is_up
        broker.process.send_signal(signal.SIGSTOP)
        with pytest.raises(SendUnconfirmed):
            link.send(topics, "setpoint", b"", command_id="c1", ttl_s=1)
        broker.process.send_signal(signal.SIGCONT)
        link.stop()


def test_link_that_lost_its_broker_says_so_at_once(topics):
    with mosquitto_broker() as broker:
        link = MqttNodeLink(as_worker(broker))
        assert link.is_up
        broker.process.kill()
        until(lambda: not link._connection.is_connected, what="the loss was not noticed", within_s=2)
        with pytest.raises(LinkUnavailable):
            link.send(topics, "setpoint", b"", command_id="c1", ttl_s=1)
        link.stop()


def test_session_is_opened_anew_after_whatever_ended_it(broker, topics):
    """A thread that died would leave the process deaf for good."""
    again = threading.Event()
    ups: list[int] = []

    def once_failing() -> None:
        ups.append(1)
        if len(ups) == 1:
            raise RuntimeError("a fault of ours")
        again.set()

    connection = BrokerConnection(
        as_worker(broker),
        identifier="central",
        subscriptions=(),
        on_message=lambda _message: None,
        on_connect=once_failing,
    )
    connection.start()
    assert again.wait(WITHIN_S)
    connection.stop()
