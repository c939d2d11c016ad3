"""Clients that go before they have their answer."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.types import Receive

from app.event_stream import EventStream

__all__ = ["HUNG_UP", "ClientGone", "StreamToClient", "while_connected"]

T = TypeVar("T")

HUNG_UP = 499  # nginx's word for it; nobody reads it


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is stopped when the client hangs up.

    Raises:
        ClientGone: the client has hung up.
    """
    working = asyncio.create_task(work)
    watching = asyncio.create_task(_gone(request.receive))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        working.cancel()
        watching.cancel()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class StreamToClient(EventStream):
    """Events for one client, with something to do when it hangs up before their end."""

    def __init__(
        self, events: AsyncIterator[bytes], on_hang_up: Callable[[], Awaitable[object]]
    ) -> None:
        super().__init__(events)
        self._on_hang_up = on_hang_up

    async def listen_for_disconnect(self, receive: Receive) -> None:
        """Starlette's watch beside the stream, which is cancelled when the stream has ended."""
        await super().listen_for_disconnect(receive)
        await self._on_hang_up()
