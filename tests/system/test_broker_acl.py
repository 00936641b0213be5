"""One node cannot see or imitate another, nor central: the broker's access list, on the broker itself.

All of it twice: on the demo's broker with passwords, and with certificates as in production.
"""

from __future__ import annotations

import asyncio
import re
import socket
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiomqtt
import pytest
from django.conf import settings
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edge.wire.topics import ALL_HEARTBEATS, ALL_PRESENCE, NodeTopics, responses_to, shared
from tests.servers import Broker, Doors

pytestmark = pytest.mark.services

TENANT = "tenant-123"
# Long enough for a broker on the same machine, short enough for a suite of refusals.
ANSWER_S = 5.0
# What a node must not write in another's branch, and what it must not read there.
UP_LEAVES = ["rsp/worker-1", "reported", "presence", "hb", "tele", "log"]
DOWN_LEAVES = ["cmd/setpoint", "desired/config", "desired/manifest", "logack"]


@pytest.fixture(params=["password", "certificate"])
def doors(request: pytest.FixtureRequest) -> Doors:
    name = "broker" if request.param == "password" else "tls_broker"
    found: Doors = request.getfixturevalue(name)
    return found


def client(doors: Doors, username: str, **options: Any) -> aiomqtt.Client:
    if isinstance(doors, Broker):
        doors.add_user(username)
    door = doors.door(username)
    return aiomqtt.Client(
        door.host,
        door.port,
        username=door.username,
        password=door.password,
        tls_context=door.context,
        protocol=aiomqtt.ProtocolVersion.V5,
        timeout=ANSWER_S,
        **options,
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
async def test_node_writes_its_own_up_topics_and_central_hears_it(doors: Doors, leaf: str):
    topics = branch()
    user = "central-worker" if leaf.startswith("rsp/") else "central-inbox"
    heard = responses_to("worker-1") if leaf.startswith("rsp/") else f"sgm/v1/+/+/{leaf}"
    async with (
        client(doors, user) as central,
        client(doors, topics.node) as publisher,
        hearing(central, heard),
    ):
        await publisher.publish(f"{topics.base}/{leaf}", leaf.encode(), qos=1)
        assert await received(central, of=topics) == leaf.encode()


@pytest.mark.parametrize("leaf", DOWN_LEAVES)
async def test_node_reads_its_own_down_topics(doors: Doors, leaf: str):
    topics = branch()
    user = "central-inbox" if leaf == "logack" else "central-worker"
    async with (
        client(doors, user) as central,
        client(doors, topics.node) as listener,
        hearing(listener, f"{topics.base}/{leaf}"),
    ):
        await central.publish(f"{topics.base}/{leaf}", leaf.encode(), qos=1)
        assert await received(listener) == leaf.encode()


@pytest.mark.parametrize("leaf", UP_LEAVES)
def test_node_cannot_speak_for_another(doors: Doors, leaf: str):
    own, victim = branch(), branch()
    assert doors.refuses_publish(username=own.node, topic=f"{victim.base}/{leaf}")
    # The same sentence on its own branch is heard: it was the branch, not the sentence.
    assert not doors.refuses_publish(username=own.node, topic=f"{own.base}/{leaf}")


@pytest.mark.parametrize("leaf", DOWN_LEAVES)
def test_node_cannot_command_another_nor_itself(doors: Doors, leaf: str):
    own, victim = branch(), branch()
    assert doors.refuses_publish(username=own.node, topic=f"{victim.base}/{leaf}")
    assert doors.refuses_publish(username=own.node, topic=f"{own.base}/{leaf}")


WIDE = [
    "{victim}/#",
    "{victim}/cmd/#",
    "sgm/v1/+/+/cmd/#",
    "sgm/v1/#",
    "sgm/+/#",
    "+/+/+/+/cmd/+",
    "#",
    "$share/x/#",
    "$share/x/{victim}/cmd/#",
    "$share/inbox/sgm/v1/+/+/hb",
    "sgm/v1/other-tenant/#",
    ALL_PRESENCE,
    responses_to("+"),
]


@pytest.mark.parametrize("pattern", WIDE)
async def test_node_reads_nothing_of_another_however_it_asks(doors: Doors, pattern: str):
    victim, topics = branch(), branch()
    async with client(doors, "central-worker") as central, client(doors, topics.node) as listener:
        # The broker may accept a wide subscription; what counts is that nothing comes through it.
        await listener.subscribe(pattern.format(victim=victim.base), qos=1)
        await listener.subscribe(topics.commands, qos=1)
        for leaf in ("cmd/setpoint", "desired/config"):
            await central.publish(f"{victim.base}/{leaf}", b"secret", qos=1)
            await central.publish(f"sgm/v1/other-tenant/{victim.node}/{leaf}", b"secret", qos=1)
        async with client(doors, victim.node) as other:
            for leaf in ("hb", "presence", "rsp/worker-1"):
                await other.publish(f"{victim.base}/{leaf}", b"secret", qos=1)
        await central.publish(topics.command("ping"), b"last", qos=1)
        # In order: had the others come through, they would have come first.
        assert await received(listener) == b"last"


async def test_retained_document_of_another_node_stays_hidden(doors: Doors):
    victim, topics = branch(), branch()
    async with client(doors, "central-worker") as central, client(doors, topics.node) as listener:
        await central.publish(victim.document("config"), b"secret", qos=1, retain=True)
        await listener.subscribe("sgm/v1/+/+/desired/#", qos=1)
        await listener.subscribe(topics.commands, qos=1)
        await central.publish(topics.command("ping"), b"last", qos=1)
        assert await received(listener) == b"last"


async def test_answer_for_another_node_does_not_reach_the_worker(doors: Doors):
    own, victim = branch(), branch()
    async with client(doors, "central-worker") as central, client(doors, own.node) as intruder:
        await central.subscribe(responses_to("worker-7"), qos=1)
        await intruder.publish(victim.response("worker-7"), b"forged", qos=1)
        await intruder.publish(own.response("worker-7"), b"own", qos=1)
        assert await received(central) == b"own"


def test_inbox_cannot_command_and_worker_cannot_acknowledge_logs(doors: Doors):
    topics = branch()
    assert doors.refuses_publish(username="central-inbox", topic=topics.command("setpoint"))
    assert doors.refuses_publish(username="central-worker", topic=topics.log_ack)


async def test_user_name_with_a_wildcard_owns_no_branch(doors: Doors):
    # `%u` is replaced by the user name: one called `+` must not thereby read everybody's commands.
    victim = branch()
    assert doors.refuses_publish(username="+", topic=victim.presence)
    async with client(doors, "+") as intruder, client(doors, "central-worker") as central:
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


async def test_response_properties_pass_the_broker(doors: Doors):
    topics = branch()
    async with client(doors, "central-worker") as central, client(doors, topics.node) as listener:
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


async def test_will_on_the_topic_of_another_is_not_published(doors: Doors):
    own, victim = branch(), branch()
    forged = aiomqtt.Will(victim.presence, b"forged", qos=1, retain=True)
    async with client(doors, "central-inbox") as central:
        await central.subscribe(ALL_PRESENCE, qos=1)
        with suppress(aiomqtt.MqttError):
            async with client(doors, own.node, will=forged) as intruder:
                # The connection breaks without a good-bye: the broker speaks the last will.
                connection = intruder._client.socket()
                assert isinstance(connection, socket.socket)
                connection.shutdown(socket.SHUT_RDWR)
                await asyncio.wait_for(asyncio.shield(intruder._disconnected), ANSWER_S)
        async with client(doors, victim.node) as rightful:
            await rightful.publish(victim.presence, b"own", qos=1, retain=True)
        assert await received(central, of=victim) == b"own"


@pytest.mark.parametrize("leaf", ["logack", "cmd/setpoint", "desired/manifest", "desired/config"])
def test_node_cannot_speak_as_central_in_another_tenant(doors: Doors, leaf: str):
    own = branch()
    assert doors.refuses_publish(username=own.node, topic=f"sgm/v1/other-tenant/{own.node}/{leaf}")


@pytest.mark.parametrize(
    "topic", ["sgm/v1/x", "$SYS/broker/uptime", "$CONTROL/dynamic-security/v1", "anything"]
)
def test_node_writes_nothing_outside_the_wire(doors: Doors, topic: str):
    assert doors.refuses_publish(username=branch().node, topic=topic)


async def test_node_takes_nothing_away_from_the_inboxes_by_sharing_their_subscription(doors: Doors):
    # A group's name is all that keeps strangers out of it, and what they are given is lost for the others.
    group = settings.SGM_MQTT_INBOX_GROUP
    own, victim = branch(), branch()
    async with (
        client(doors, "central-inbox") as central,
        client(doors, own.node) as intruder,
        client(doors, victim.node) as rightful,
    ):
        await central.subscribe(shared(ALL_HEARTBEATS, group=group), qos=1)
        for guess in ("inbox", "x", "inbox-", group[:-1]):
            with suppress(aiomqtt.MqttError):
                await intruder.subscribe(shared(ALL_HEARTBEATS, group=guess), qos=1)
        for number in range(20):
            await rightful.publish(victim.heartbeat, str(number).encode(), qos=1)
        assert [await received(central, of=victim) for _ in range(20)] == [
            str(number).encode() for number in range(20)
        ]


def test_name_of_the_inboxes_group_cannot_be_guessed():
    assert re.fullmatch(r"inbox-[0-9a-f]{32}", settings.SGM_MQTT_INBOX_GROUP)
    assert settings.SECRET_KEY not in settings.SGM_MQTT_INBOX_GROUP
