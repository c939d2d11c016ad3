"""What many want at the same time, done once for all of them."""

import asyncio
from collections.abc import Awaitable, Callable

__all__ = ["Joint"]


class Joint:
    """Runs its work once at a time; who comes meanwhile shares how that ends, also badly.

    Behind a lock each would try for itself in turn, and with a Redis that hangs wait for the sum of
    all time limits before its own.
    """

    def __init__(self, work: Callable[[], Awaitable[None]]) -> None:
        self._work = work
        self._running: asyncio.Task[None] | None = None

    async def done(self) -> None:
        """Do the work, or wait for the one who does; raises what it raises."""
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._do())
        await asyncio.shield(self._running)  # who goes takes nothing from the others

    async def _do(self) -> None:
        await self._work()
