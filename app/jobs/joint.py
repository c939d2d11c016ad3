"""What many want at the same time, done once for all of them."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

__all__ = ["Joint"]

T = TypeVar("T")


class Joint(Generic[T]):
    """Runs its work once at a time; who comes meanwhile shares how that ends, also badly.

    Behind a lock each would try for itself in turn, and with a Redis that hangs wait for the sum of
    all time limits before its own.
    """

    def __init__(self, work: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._work = work
        self._running: asyncio.Task[T] | None = None

    async def done(self) -> T:
        """Do the work, or wait for the one who does; raises what it raises."""
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._work())
        return await asyncio.shield(self._running)  # who goes takes nothing from the others
