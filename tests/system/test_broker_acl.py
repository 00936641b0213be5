"""One node cannot see or imitate another, nor central: the broker's access list, on the broker itself."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiomqtt
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edge.wire.topics import ALL_PRESENCE, NodeTopics, responses_to
from tests.servers import Broker

pytestmark = pytest.mark.services

TENANT = "tenant-123"
# Long enough for a broker on the same machine, short enough for a suite of refusals.
ANSWER_S = 5.0
# What a node must not write in another's branch, and what it must not read there.
UP_LEAVES = ["rsp/worker-1", "reported", "presence", "hb", "tele", "log"]
DOWN_LEAVES = ["cmd/setpoint", "desired/config", "desired/manifest", "logack"]


def client(broker: Broker, username: str) -> aiomqtt.Client:
    return aiomqtt.Client(
        broker.host,
        broker.port,
        username=username,
        password=broker.add_user(username),
        protocol=aiomqtt.ProtocolVersion.V5,
        timeout=ANSWER_S,
    )


def branch() -> NodeTopics:
    """The topics of a node that nobody else has."""
    return NodeTopics(TENANT, str(uuid.uuid4()))


async def received(listener: aiomqtt.Client, *, of: NodeTopics | None = None) -> bytes:
    """The next message; with `of` the next one of this branch: others left retained ones on the broker."""
    async with asyncio.timeout(ANSWER_S):
        async for message in listener.messages:
            if of is None or of.leaf(message.topic.value) is not None:
                assert isinstance(message.payload, bytes)
                return message.payload
    raise AssertionError("the broker closed the connection")


@asynccontextmanager
async def hearing(listener: aiomqtt.Client, topic: str) -> AsyncIterator[aiomqtt.Client]:
    await listener.subscribe(topic, qos=1)
    yield listener
    await listener.unsubscribe(topic)


@pytest.mark.parametrize("leaf", UP_LEAVES)
async def test_node_writes_its_own_up_topics_and_central_hears_it(broker: Broker, leaf: str):
    topics = branch()
    user = "central-worker" if leaf.startswith("rsp/") else "central-inbox"
    heard = responses_to("worker-1") if leaf.startswith("rsp/") else f"sgm/v1/+/+/{leaf}"
    async with (
        client(broker, user) as central,
        client(broker, topics.node) as publisher,
        hearing(central, heard),
    ):
        await publisher.publish(f"{topics.base}/{leaf}", leaf.encode(), qos=1)
        assert await received(central, of=topics) == leaf.encode()


@pytest.mark.parametrize("leaf", DOWN_LEAVES)
async def test_node_reads_its_own_down_topics(broker: Broker, leaf: str):
    topics = branch()
    user = "central-inbox" if leaf == "logack" else "central-worker"
    async with (
        client(broker, user) as central,
        client(broker, topics.node) as listener,
        hearing(listener, f"{topics.base}/{leaf}"),
    ):
        await central.publish(f"{topics.base}/{leaf}", leaf.encode(), qos=1)
        assert await received(listener) == leaf.encode()


@pytest.mark.parametrize("leaf", UP_LEAVES)
def test_node_cannot_speak_for_another(broker: Broker, leaf: str):
    own, victim = branch(), branch()
    assert broker.refuses_publish(username=own.node, topic=f"{victim.base}/{leaf}")
    # The same sentence on its own branch is heard: it was the branch, not the sentence.
    assert not broker.refuses_publish(username=own.node, topic=f"{own.base}/{leaf}")


@pytest.mark.parametrize("leaf", DOWN_LEAVES)
def test_node_cannot_command_another_nor_itself(broker: Broker, leaf: str):
    own, victim = branch(), branch()
    assert broker.refuses_publish(username=own.node, topic=f"{victim.base}/{leaf}")
    assert broker.refuses_publish(username=own.node, topic=f"{own.base}/{leaf}")


@pytest.mark.parametrize("pattern", ["{victim}/#", "{victim}/cmd/#", "sgm/v1/+/+/cmd/#", "#", ALL_PRESENCE])
async def test_node_reads_nothing_of_another_however_it_asks(broker: Broker, pattern: str):
    victim, topics = branch(), branch()
    async with client(broker, "central-worker") as central, client(broker, topics.node) as listener:
        # The broker may accept a wide subscription; what counts is that nothing comes through it.
        await listener.subscribe(pattern.format(victim=victim.base), qos=1)
        await listener.subscribe(topics.commands, qos=1)
        for leaf in ("cmd/setpoint", "desired/config"):
            await central.publish(f"{victim.base}/{leaf}", b"secret", qos=1)
        await central.publish(topics.command("ping"), b"last", qos=1)
        # In order: had the others come through, they would have come first.
        assert await received(listener) == b"last"


async def test_retained_document_of_another_node_stays_hidden(broker: Broker):
    victim, topics = branch(), branch()
    async with client(broker, "central-worker") as central, client(broker, topics.node) as listener:
        await central.publish(victim.document("config"), b"secret", qos=1, retain=True)
        await listener.subscribe("sgm/v1/+/+/desired/#", qos=1)
        await listener.subscribe(topics.commands, qos=1)
        await central.publish(topics.command("ping"), b"last", qos=1)
        assert await received(listener) == b"last"


async def test_answer_for_another_node_does_not_reach_the_worker(broker: Broker):
    own, victim = branch(), branch()
    async with client(broker, "central-worker") as central, client(broker, own.node) as intruder:
        await central.subscribe(responses_to("worker-7"), qos=1)
        await intruder.publish(victim.response("worker-7"), b"forged", qos=1)
        await intruder.publish(own.response("worker-7"), b"own", qos=1)
        assert await received(central) == b"own"


def test_inbox_cannot_command_and_worker_cannot_acknowledge_logs(broker: Broker):
    topics = branch()
    assert broker.refuses_publish(username="central-inbox", topic=topics.command("setpoint"))
    assert broker.refuses_publish(username="central-worker", topic=topics.log_ack)


async def test_user_name_with_a_wildcard_owns_no_branch(broker: Broker):
    # `%u` is replaced by the user name: one called `+` must not thereby read everybody's commands.
    victim = branch()
    assert broker.refuses_publish(username="+", topic=victim.presence)
    async with client(broker, "+") as intruder, client(broker, "central-worker") as central:
        await intruder.subscribe(victim.commands, qos=1)
        await central.publish(victim.command("setpoint"), b"secret", qos=1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await anext(aiter(intruder.messages))


async def test_wrong_password_and_unknown_user_stay_outside(broker: Broker):
    topics = branch()
    for username, password in ((topics.node, "wrong"), (str(uuid.uuid4()), "any"), (None, None)):
        with pytest.raises(aiomqtt.MqttError, match="Not authorized"):
            async with aiomqtt.Client(
                broker.host,
                broker.port,
                username=username,
                password=password,
                protocol=aiomqtt.ProtocolVersion.V5,
                timeout=ANSWER_S,
            ):
                pass


async def test_response_properties_pass_the_broker(broker: Broker):
    topics = branch()
    async with client(broker, "central-worker") as central, client(broker, topics.node) as listener:
        await listener.subscribe(topics.commands, qos=1)
        properties: Any = Properties(PacketTypes.PUBLISH)
        properties.ResponseTopic = topics.response("worker-1")
        properties.CorrelationData = b"42"
        await central.publish(topics.command("ping"), b"{}", qos=1, properties=properties)
        async with asyncio.timeout(ANSWER_S):
            message = await anext(aiter(listener.messages))
        received: Any = message.properties
        assert received.ResponseTopic == topics.response("worker-1")
        assert received.CorrelationData == b"42"
