"""Renews a node's certificate while it works: at two thirds of its life, or when central asks for it.

The old one stays good until the new one is in use. The new one is tried in a handshake before it takes the
old one's place, so a certificate that the broker does not take costs the node nothing.

With the answer comes whom to believe about the broker. A node that finds a broker it does not know asks at
once: so it comes to believe another authority after a change of central's. It takes nobody's word for that
but the word of the HTTPS server that it was enrolled at.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import msgspec
import structlog

from edge.core.clock import Trust
from edge.runtime.alarms import Alarms
from edge.runtime.clock import SteeredClock
from edge.runtime.enroll import Central, CentralRefused, CentralUnreachable
from edge.runtime.identity import (
    NEXT_CERTIFICATE,
    NEXT_KEY,
    Credentials,
    Identity,
    IdentityUnusable,
    broker_of,
    credentials_read,
    credentials_write,
    identity_keep,
    key_kept,
    move_into_place,
)
from edge.wire.enrolment import (
    CHALLENGE_PATH,
    CONFIRM_PATH,
    RENEW_PATH,
    Challenge,
    ConfirmRequest,
    Issued,
    RenewRequest,
    confirmation_statement,
    renewal_statement,
)
from edge.wire.session import BrokerUnknown, LinkDown, try_certificate

log = structlog.get_logger()

ALARM = "certificate"
# Of a certificate's life: renewed after this much, an alarm when less than that is left.
RENEW_AFTER, ALARM_BELOW = 2 / 3, 1 / 6
LOOK_S = 30.0
RETRY_FIRST_S, RETRY_SLOWEST_S = 60.0, 3600.0


class Connection(Protocol):
    """As much of the link as is needed here."""

    @property
    def live_session(self) -> str:
        """The id of the session that is open; empty where none is."""

    def reconnect(self) -> None:
        """End the present session and open another."""


class Renewal:
    """Keeps one node's certificate good."""

    def __init__(
        self,
        *,
        identity: Identity,
        state: Path,
        clock: SteeredClock,
        alarms: Alarms,
        connection: Connection,
        asked: Callable[[], str | None],
        look_s: float = LOOK_S,
    ) -> None:
        """`asked`: what the configuration says in `renew_certificates_before`."""
        self._identity = identity
        self._state = state
        self._clock = clock
        self._alarms = alarms
        self._connection = connection
        self._asked = asked
        self._look_s = look_s
        self._central = Central(identity.url, authority=identity.url_authority, is_dated=self.is_dated)
        self._confirmed = ""
        self._failed = ""

    def is_dated(self) -> bool:
        """Whether this node knows the time well enough to judge a certificate by it."""
        return self._clock.standing().trust is not Trust.UNSYNCED

    async def run(self) -> None:
        """Look after the certificate for the life of the node; nothing that goes wrong here ends it."""
        wait_s = RETRY_FIRST_S
        # Not all nodes of a fleet at once, after a loss of the broker or of central.
        await self._clock.sleep(random.uniform(0, self._look_s))
        while True:
            try:
                await self._look()
            except (CentralUnreachable, CentralRefused, IdentityUnusable, LinkDown, OSError) as error:
                if str(error) != self._failed:
                    log.warning("the certificate is not renewed", error=str(error), again_in_s=wait_s)
                self._failed = str(error)
                self._tell()
                await self._clock.sleep(wait_s * random.uniform(0.75, 1.25))
                wait_s = min(wait_s * 2, RETRY_SLOWEST_S)
                continue
            wait_s, self._failed = RETRY_FIRST_S, ""
            self._tell()
            await self._clock.sleep(self._look_s)

    async def _look(self) -> None:
        present = credentials_read(self._state)
        if self._connection.live_session and present.fingerprint != self._confirmed:
            # The session was opened with what is on disk: it is only replaced below.
            await asyncio.to_thread(self._confirm, present)
            self._confirmed = present.fingerprint
        if self._is_due(present) or await self._is_broker_unknown():
            await self._renew(present)

    def _is_due(self, present: Credentials) -> bool:
        asked = self._asked()
        if asked is not None and present.issued_at < _moment(asked):
            return True
        if not self.is_dated():
            # Nobody knows how old anything is by a clock that nothing confirms.
            return False
        return self._left(present) < 1 - RENEW_AFTER

    async def _is_broker_unknown(self) -> bool:
        """Whether what answers at the broker's address is nobody whom this node believes."""
        if self._connection.live_session:
            return False
        try:
            await try_certificate(broker_of(self._identity, self._state, is_dated=self.is_dated))
        except BrokerUnknown:
            return True
        except LinkDown:
            # Away, or it does not take our certificate: the link says so.
            return False
        return False

    def _left(self, present: Credentials) -> float:
        """How much of the certificate's life is left, 1..0; negative once it has lapsed."""
        life = present.not_after - present.issued_at
        return (present.not_after - self._clock.now().utc) / life

    async def _renew(self, present: Credentials) -> None:
        issued = await asyncio.to_thread(self._ask, present)
        identity = msgspec.structs.replace(self._identity, broker_authority=issued.broker_authority)
        # A handshake is all: the session with the old one goes on meanwhile.
        await try_certificate(broker_of(identity, self._state, is_dated=self.is_dated, name=NEXT_CERTIFICATE))
        if identity != self._identity:
            # With either certificate: the process may die before the next line.
            identity_keep(self._state, identity)
            self._identity = identity
            log.warning("another authority vouches for the broker", broker=identity.broker)
        before = self._connection.live_session
        move_into_place(self._state)
        log.info("certificate renewed", not_after=credentials_read(self._state).not_after.isoformat())
        if before:
            self._connection.reconnect()
            while self._connection.live_session in ("", before):
                await self._clock.sleep(min(1.0, self._look_s))
            await self._look()

    def _ask(self, present: Credentials) -> Issued:
        """Have a new key certified, and put both down beside the present ones; central's answer."""
        key = key_kept(self._state / NEXT_KEY)
        challenge = self._central.ask(CHALLENGE_PATH, None, Challenge).challenge
        csr = key.csr()
        statement = renewal_statement(challenge=challenge, fingerprint=present.fingerprint, csr=csr)
        asked = RenewRequest(
            challenge=challenge,
            fingerprint=present.fingerprint,
            csr=csr,
            signature=present.key.sign(statement),
        )
        issued = self._central.ask(RENEW_PATH, asked, Issued)
        if issued.node != self._identity.node:
            raise IdentityUnusable(f"central renewed the certificate of another node, {issued.node}")
        credentials_write(self._state, key=key, certificate=issued.certificate, name=NEXT_CERTIFICATE)
        return issued

    def _confirm(self, present: Credentials) -> None:
        challenge = self._central.ask(CHALLENGE_PATH, None, Challenge).challenge
        statement = confirmation_statement(challenge=challenge, fingerprint=present.fingerprint)
        signature = present.key.sign(statement)
        self._central.tell(
            CONFIRM_PATH,
            ConfirmRequest(challenge=challenge, fingerprint=present.fingerprint, signature=signature),
        )

    def _tell(self) -> None:
        """Raise the alarm while little is left, with what keeps the renewal from succeeding."""
        try:
            present = credentials_read(self._state)
        except IdentityUnusable as error:
            self._alarms.set(ALARM, str(error))
            return
        if not self.is_dated() or self._left(present) >= ALARM_BELOW:
            self._alarms.clear(ALARM)
            return
        detail = f"the node's certificate lapses at {present.not_after:%Y-%m-%d %H:%M}Z and is not renewed"
        self._alarms.set(ALARM, f"{detail}: {self._failed}" if self._failed else detail)


def _moment(text: str) -> datetime:
    """A moment as the wire writes it; one that cannot be read is long ago."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        log.error("renew_certificates_before is not understood", value=text[:64])  # noqa: TRY400
        return datetime.min.replace(tzinfo=UTC)
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
