"""A node's certificate is renewed while it works: against a real broker, and central behind a real socket."""

from __future__ import annotations

import asyncio
import shutil
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from asgiref.sync import sync_to_async

from edge.core.clock import Standing, Trust
from edge.runtime.alarms import Alarms
from edge.runtime.clock import HostClock, wall
from edge.runtime.identity import (
    NEXT_CERTIFICATE,
    NEXT_KEY,
    Identity,
    broker_of,
    credentials_read,
    identity_keep,
    identity_read,
    identity_write,
    key_kept,
)
from edge.runtime.renewal import ALARM, Renewal
from edge.wire.session import open_session
from sites_app import authority, identity
from sites_app.models import Node
from tests.factories import node_make
from tests.nodes import Key
from tests.runtime.site import until
from tests.servers import TlsBroker

pytestmark = [pytest.mark.services, pytest.mark.django_db(transaction=True)]


@pytest.fixture(scope="session", autouse=True)
def _database_first(database_of_threads: None) -> None:
    """Before the live server."""


LIFE = timedelta(days=12)
NOWHERE = "http://127.0.0.1:1"


class LookedClock(HostClock):
    """Counts the pauses of whoever sleeps by it: what comes between two of them is over."""

    pauses = 0

    async def sleep(self, seconds: float) -> None:
        self.pauses += 1
        await super().sleep(seconds)


class UnsyncedClock(LookedClock):
    def standing(self) -> Standing:
        return Standing(Trust.UNSYNCED, None)


@dataclass
class Session:
    """The node's session at the broker, as its link keeps it: opened anew when asked."""

    identity: Identity
    state: Path
    live_session: str = ""
    opened_with: list[str] = field(default_factory=list)
    _again: asyncio.Event = field(default_factory=asyncio.Event)

    def reconnect(self) -> None:
        self._again.set()

    async def run(self) -> None:
        while True:
            self._again.clear()
            fingerprint = credentials_read(self.state).fingerprint
            broker = broker_of(self.identity, self.state, is_dated=lambda: True)
            async with open_session(broker, identifier="x"):
                self.opened_with.append(fingerprint)
                self.live_session = uuid.uuid4().hex
                await self._again.wait()
                self.live_session = ""


@dataclass
class Enrolled:
    """A node, its state directory, and what looks after its certificate."""

    node: Node
    state: Path
    clock: LookedClock
    alarms: Alarms
    session: Session
    asked: list[str] = field(default_factory=list)

    async def looked(self, times: int = 3) -> None:
        """Let it look at its certificate so many times more."""
        seen = self.clock.pauses
        await until(lambda: self.clock.pauses >= seen + times, within_s=20)

    @property
    def fingerprint(self) -> str:
        return credentials_read(self.state).fingerprint

    @asynccontextmanager
    async def working(self, *, linked: bool = True) -> AsyncIterator[None]:
        renewal = Renewal(
            identity=identity_read(self.state),
            state=self.state,
            clock=self.clock,
            alarms=self.alarms,
            connection=self.session,
            asked=lambda: self.asked[-1] if self.asked else None,
            look_s=0.05,
        )
        tasks = [asyncio.create_task(renewal.run())]
        if linked:
            tasks.append(asyncio.create_task(self.session.run()))
        try:
            yield
        finally:
            # A client that is broken off while it connects is left to the garbage collector.
            if linked:
                await until(lambda: self.session.live_session, within_s=20)
            for task in tasks:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task


@pytest.fixture
def enrolled(tls_broker: TlsBroker, live_server, settings, tmp_path) -> Callable[..., Enrolled]:
    settings.SGM_CA_DIR = str(tls_broker.directory)
    settings.SGM_NODES_MQTT_URL = tls_broker.nodes_url
    settings.SGM_NODE_CERTIFICATE_DAYS = LIFE.days

    def make(*, age: timedelta, url: str = "", clock: LookedClock | None = None) -> Enrolled:
        node, state = node_make(), tmp_path / uuid.uuid4().hex
        state.mkdir()
        at = datetime.now(UTC) - age
        # As `enroll` does it, some time ago.
        key = Key()
        token = identity.enrolment_token_issue(node=node, now=at)
        issued = identity.node_enrol(token=token.value, csr=key.csr(), now=at)
        key.with_certificate(state / "identity.pem", issued.certificate)
        identity_write(state, issued=issued, url=url or live_server.url, url_authority="")
        clock = clock or LookedClock(trust_host=True)
        session = Session(identity_read(state), state)
        return Enrolled(node, state, clock, Alarms(clock, lambda: None), session)

    return make


async def test_certificate_is_renewed_at_two_thirds_of_its_life_and_the_old_one_ends(enrolled):
    node = await sync_to_async(enrolled)(age=LIFE * 0.68)
    old = node.fingerprint
    async with node.working():
        await until(lambda: len(node.session.opened_with) == 2, within_s=20)
        new = node.fingerprint
        assert node.session.opened_with == [old, new] != [old, old]

        await node.looked()
    assert (await node.node.certificates.aget(fingerprint=old)).reason == "superseded"
    assert (await node.node.certificates.aget(fingerprint=new)).confirmed_at is not None
    assert not (node.state / NEXT_KEY).exists()
    assert node.alarms.standing == ()


async def test_younger_certificate_is_confirmed_and_kept(enrolled):
    node = await sync_to_async(enrolled)(age=LIFE * 0.6)
    before = node.fingerprint
    async with node.working():
        await until(lambda: node.session.live_session, within_s=20)
        await node.looked()
    assert node.fingerprint == before
    assert (await node.node.certificates.aget()).confirmed_at is not None
    assert await node.node.certificates.acount() == 1


async def test_asked_node_renews_once(enrolled):
    node = await sync_to_async(enrolled)(age=timedelta(hours=1))
    node.asked.append(wall(datetime.now(UTC) - timedelta(seconds=1)))
    async with node.working():
        await until(lambda: len(node.session.opened_with) == 2, within_s=20)
        # What is on disk now is younger than what was asked for.
        await node.looked()
    assert len(node.session.opened_with) == 2
    assert await node.node.certificates.acount() == 2


async def test_node_with_a_wrong_clock_renews_when_asked_and_not_by_its_clock(enrolled):
    clock = UnsyncedClock(trust_host=True)
    node = await sync_to_async(enrolled)(age=LIFE * 0.95, clock=clock)
    before = node.fingerprint
    async with node.working():
        await until(lambda: node.session.live_session, within_s=20)
        await node.looked()
        assert (node.fingerprint, node.alarms.standing) == (before, ())
        node.asked.append(wall(datetime.now(UTC)))
        await until(lambda: node.fingerprint != before, within_s=20)


@pytest.mark.parametrize(("age", "is_told"), [(0.8, False), (0.9, True)])
async def test_failed_renewal_raises_an_alarm_in_the_last_sixth_and_costs_no_session(enrolled, age, is_told):
    node = await sync_to_async(enrolled)(age=LIFE * age, url=NOWHERE)
    before = node.fingerprint
    async with node.working():
        await until(lambda: node.session.live_session, within_s=20)
        if is_told:
            await until(lambda: node.alarms.standing, within_s=20)
            assert node.alarms.standing[0].code == ALARM
            assert "cannot be reached" in node.alarms.standing[0].detail
        else:
            # The second pause is the one before it tries again.
            await until(lambda: node.clock.pauses >= 2, within_s=20)
            assert node.alarms.standing == ()
    assert node.fingerprint == before
    assert node.session.opened_with == [before]


async def test_alarm_ends_with_the_renewal(enrolled):
    node = await sync_to_async(enrolled)(age=LIFE * 0.9)
    node.alarms.set(ALARM, "it lapses soon")
    async with node.working():
        await until(lambda: not node.alarms.standing, within_s=20)
    assert len(node.session.opened_with) == 2


async def test_node_without_a_link_renews_for_its_return(enrolled):
    # Its broker is away, central's HTTPS is not: but nothing is replaced that no handshake has shown to be good.
    node = await sync_to_async(enrolled)(age=LIFE * 0.7)
    before = node.fingerprint
    async with node.working(linked=False):
        await until(lambda: node.fingerprint != before, within_s=20)
    async with node.working():
        await until(lambda: node.session.opened_with == [node.fingerprint], within_s=20)


async def test_renewal_goes_on_with_the_key_of_the_one_that_died(enrolled):
    node = await sync_to_async(enrolled)(age=LIFE * 0.7)
    key = key_kept(node.state / NEXT_KEY)
    async with node.working():
        await until(lambda: len(node.session.opened_with) == 2, within_s=20)
    assert credentials_read(node.state).key.pem == key.pem


# --- another authority vouches for the broker -----------------------------------------------------------


def authority_of_another(directory: Path) -> Path:
    authority.authority_make(directory=directory, hosts=["localhost"], now=datetime.now(UTC))
    return directory


async def test_node_that_does_not_know_the_broker_comes_to_believe_what_central_says(
    enrolled, tls_broker, tmp_path
):
    node = await sync_to_async(enrolled)(age=timedelta(hours=1))
    before = node.fingerprint
    former = (authority_of_another(tmp_path / "former") / "central-ca.pem").read_text()
    identity_keep(node.state, msgspec.structs.replace(identity_read(node.state), broker_authority=former))
    async with node.working(linked=False):
        await until(lambda: node.fingerprint != before, within_s=20)
    assert identity_read(node.state).broker_authority == tls_broker.broker_authority
    async with node.working():
        await until(lambda: node.session.opened_with == [node.fingerprint], within_s=20)


async def test_node_believes_nobody_whom_the_broker_is_not_of(enrolled, tls_broker, settings, tmp_path):
    # Central has another authority already, and its broker does not.
    node = await sync_to_async(enrolled)(age=LIFE * 0.7)
    before = node.fingerprint
    other = authority_of_another(tmp_path / "other")
    settings.SGM_CA_DIR = str(other)
    for name in ("nodes-ca.key", "nodes-ca.pem"):
        shutil.copy(tls_broker.directory / name, other / name)
    async with node.working(linked=False):
        # The second pause is the one before it tries again.
        await until(lambda: node.clock.pauses >= 2, within_s=20)
        assert (node.state / NEXT_CERTIFICATE).exists()
    assert node.fingerprint == before
    assert identity_read(node.state).broker_authority == tls_broker.broker_authority
