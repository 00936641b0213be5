"""An enrolled node at work: controlled over mutual TLS, and its certificate renewed under a running hold."""

from __future__ import annotations

import asyncio
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest
from asgiref.sync import sync_to_async

from edge.runtime.clock import wall
from edge.runtime.enroll import enroll
from edge.runtime.identity import credentials_read
from edge.wire.messages import Presence
from edge.wire.session import Session, open_session
from edge.wire.topics import NodeTopics
from sites_app import identity
from sites_app.node_link import broker_for
from tests.factories import node_make
from tests.runtime.central import KINDS, Central
from tests.runtime.site import A, running_site, until
from tests.servers import TlsBroker, until as wait_until

pytestmark = [pytest.mark.services, pytest.mark.long, pytest.mark.django_db(transaction=True)]

# The node looks at its certificate every half minute, and after a failure, a slow machine say, waits longer.
RENEWED_WITHIN_S = 240.0


@pytest.fixture(scope="session", autouse=True)
def _database_first(database_of_threads: None) -> None:
    """Before the live server."""


@pytest.fixture(autouse=True)
def settings_of_central(tls_broker: TlsBroker, settings) -> None:
    directory = tls_broker.directory
    settings.SGM_CA_DIR = str(directory)
    settings.SGM_NODES_MQTT_URL = tls_broker.nodes_url
    settings.SGM_MQTT_TLS = True
    settings.SGM_MQTT_HOST, settings.SGM_MQTT_PORT = "localhost", tls_broker.central_port
    settings.SGM_MQTT_TLS_CA = str(directory / "central-ca.pem")
    settings.SGM_MQTT_TLS_CERTIFICATES = {
        user: str(directory / f"{user}.pem") for user in ("central-worker", "central-inbox")
    }


@asynccontextmanager
async def central_for(topics: NodeTopics) -> AsyncIterator[Central]:
    """Central's two users, by their certificates."""
    async with AsyncExitStack() as stack:
        sessions: list[Session] = []
        for user, leaves in (("central-worker", ["rsp/+"]), ("central-inbox", list(KINDS))):
            opened = open_session(broker_for(user, ""), identifier=uuid.uuid4().hex)
            session = await stack.enter_async_context(opened)
            await session.subscribe(*(f"{topics.base}/{leaf}" for leaf in leaves))
            sessions.append(session)
        worker, inbox = sessions
        central = Central(topics, worker, inbox)
        tasks = [asyncio.create_task(central.listen(session)) for session in sessions]
        try:
            yield central
        finally:
            for task in tasks:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task


async def test_renewal_is_not_noticed_by_a_hold(tls_broker, live_server, tmp_path: Path):
    node = await sync_to_async(node_make)()
    token = await sync_to_async(identity.enrolment_token_issue)(node=node, now=datetime.now(UTC))
    async with running_site(tmp_path) as site:
        await asyncio.to_thread(enroll, url=live_server.url, token=token.value, state=site.state)
        site.node = str(node.pk)
        site.put_on_disk()
        first = credentials_read(site.state)
        async with central_for(node.topics) as central:
            central.manifest_version = 1
            process = site.spawn([sys.executable, "-m", "edge", "node", "--state", str(site.state)])
            before = await central.expect(Presence, lambda presence: presence.online, within_s=30)
            command = await central.setpoint(INVERTER_01=30, hold_s=600)
            assert (await central.expect_answer(command, "done")).devices[A].ok
            writes = site.devices[A].writes["limit_target"]

            await central.configured({**site.body, "renew_certificates_before": wall(datetime.now(UTC))})
            await central.expect(
                Presence,
                lambda presence: presence.online and presence.session != before.session,
                within_s=RENEWED_WITHIN_S,
            )
            second = credentials_read(site.state)
            assert (second.node, second.fingerprint != first.fingerprint) == (str(node.pk), True)
            assert process.poll() is None
            assert site.devices[A].limit_in_force == 30
            assert site.devices[A].writes["limit_target"] == writes

            # It works by the new one, and says so: the old one ends.
            command = await central.setpoint(INVERTER_01=40, hold_s=600)
            assert (await central.expect_answer(command, "done")).devices[A].ok
            old = node.certificates.filter(fingerprint=first.fingerprint, reason="superseded")
            await sync_to_async(wait_until)(old.exists, what="the old certificate did not end")
            process.terminate()
            await until(lambda: process.poll() is not None, within_s=20)
            assert process.returncode == 0
