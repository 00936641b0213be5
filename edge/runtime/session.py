"""What the runtime needs of the broker. Real sessions are those of `edge.wire.session`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from edge.wire.session import Broker, Incoming, Will


class Session(Protocol):
    """What the link needs of a session with the broker; `LinkDown` from any method once it is gone."""

    async def subscribe(self, *topics: str, qos: int = 1) -> None: ...

    async def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int = 1,
        retain: bool = False,
        expiry_s: int | None = None,
        response_topic: str | None = None,
        correlation: bytes | None = None,
    ) -> None: ...

    def messages(self) -> AsyncIterator[Incoming]: ...


class OpenSession(Protocol):
    """How a session with the broker is opened: `edge.wire.session.open_session`, or a simulated one."""

    def __call__(
        self, broker: Broker, *, identifier: str, will: Will | None = None
    ) -> AbstractAsyncContextManager[Session]: ...
