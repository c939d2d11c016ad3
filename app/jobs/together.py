"""A Redis client that sends together what is asked of it at the same time.

One command costs the client far more than the server: a connection of the pool, a system call each
way, turns of the event loop. While one batch is on its way, what is asked meanwhile waits and goes
as the next one (group commit); a lone command goes at once.
"""

import asyncio
import copy
from typing import Any, NamedTuple

from redis.asyncio import Redis

__all__ = ["Together"]

_MOST = 64  # commands of a batch


class _Asked(NamedTuple):
    command: tuple[Any, ...]
    options: dict[str, Any]
    answer: asyncio.Future[Any]


class Together(Redis):
    """Redis, its single commands batched; pipelines and subscriptions are as they were.

    Not for commands that block: others would wait with them.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._asked: list[_Asked] = []
        self._sending: asyncio.Task[None] | None = None

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """One command's answer, or its error, as if it had been sent alone."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._asked.append(_Asked(args, options, answer))
        if self._sending is None:
            self._sending = asyncio.create_task(self._send())
        return await answer

    async def _send(self) -> None:
        try:
            while self._asked:
                batch, self._asked = self._asked[:_MOST], self._asked[_MOST:]
                await self._exchange(batch)
        finally:  # left over only where the loop ends amid a batch
            for one in self._asked:
                one.answer.cancel()
            self._asked, self._sending = [], None

    async def _exchange(self, batch: list[_Asked]) -> None:
        pipe = self.pipeline(transaction=False)
        for one in batch:
            pipe.execute_command(*one.command, **one.options)
        try:
            answers = await pipe.execute(raise_on_error=False)
        except asyncio.CancelledError:
            for one in batch:
                one.answer.cancel()
            raise
        except Exception as fault:  # of the connection, after its retry
            # Also of what waits: else each batch would find out for itself, one after the other.
            batch, self._asked = [*batch, *self._asked], []
            answers = [copy.copy(fault) for _ in batch]
        for one, answer in zip(batch, answers, strict=True):
            if one.answer.done():  # nobody waits for it any more
                continue
            if isinstance(answer, Exception):
                one.answer.set_exception(answer)
            else:
                one.answer.set_result(answer)
