"""The floor's broker part: whoever answers each message it gets, at QoS 1."""

from __future__ import annotations

import asyncio
import sys

from edge.wire.session import broker_from_url, open_session


async def _answer(url: str) -> None:
    async with open_session(
        broker_from_url(url, username=None, password=None), identifier="floor-node"
    ) as session:
        await session.subscribe("floor/cmd")
        async for message in session.messages():
            await session.publish("floor/rsp", message.payload)


asyncio.run(_answer(sys.argv[1]))
