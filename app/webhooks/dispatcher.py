"""Delivers webhooks in the background of an API process."""

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import structlog
from redis.exceptions import RedisError, ResponseError

from app.jobs.reader import JobReader
from app.jobs.record import JobRecord
from app.schemas.jobs import JobObject
from app.webhooks.call import Answer, Caller
from app.webhooks.deliveries import Deliveries, Due

__all__ = ["Dispatcher"]

_log = structlog.get_logger()

_LOOK_EVERY_S = 0.5
_TRY_AGAIN_AFTER_S = 2.0  # after Redis was away
_HOLD_S = 60.0  # longer than any call
_AT_ONCE = 32
_PARKED_S = 60.0  # at most, where no call that has the place ends
_AT_ONCE_PER_HOST = 8  # a slow receiver must leave room for the others
_AT_ONCE_PER_OWNER = 24  # and so must one customer with many of them
_LATER = 3.0  # each wait is so many times the one before
_LONGEST_WAIT_S = 6 * 3600.0
_GIVE_UP_AFTER_S = 86400.0

Present = Callable[[JobRecord], Awaitable[JobObject]]


class Dispatcher:
    """Takes what is due, calls, and takes note of the answer."""

    def __init__(
        self,
        deliveries: Deliveries,
        reader: JobReader,
        caller: Caller,
        present: Present,
        first_wait_s: float,
        count: Callable[[str], None],
    ) -> None:
        """`present` gives the wire form of a record, `count` is told how each call ended."""
        self._deliveries = deliveries
        self._reader = reader
        self._caller = caller
        self._present = present
        self._first_wait_s = first_wait_s
        self._count = count
        self._busy: Counter[str] = Counter()  # calls under way, by host and by owner
        self._calls: set[asyncio.Task[None]] = set()
        self._running: asyncio.Task[None] | None = None
        self._closed = False  # redis-py may swallow a cancellation while it connects

    async def start(self) -> None:
        """Deliver in the background until `close`."""
        # The loop looks names up here; by default in so few threads that a handful of names whose
        # servers are silent would hold up all others.
        names = ThreadPoolExecutor(2 * _AT_ONCE, "names")
        asyncio.get_running_loop().set_default_executor(names)
        self._running = asyncio.create_task(self._run(), name="webhooks")

    async def close(self) -> None:
        """Stop; calls under way are broken off, and their deliveries are due again at once."""
        self._closed = True
        tasks = [*self._calls, *([self._running] if self._running is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._caller.close()

    async def _run(self) -> None:
        while not self._closed:
            try:
                room = _AT_ONCE - len(self._calls)
                due = await self._taken(room) if room > 0 else []
            except (RedisError, OSError):
                await asyncio.sleep(_TRY_AGAIN_AFTER_S)
                continue
            for one in due:
                self._begin(one)
            if not due and room > 0:
                await asyncio.sleep(_LOOK_EVERY_S)
            elif not due:
                await asyncio.wait(self._calls, return_when=asyncio.FIRST_COMPLETED)

    async def _taken(self, most: int) -> list[Due]:
        """What is due; given back where this is broken off, else it would stay held."""
        taking = asyncio.ensure_future(self._deliveries.take(most, _HOLD_S))
        try:
            return await asyncio.shield(taking)
        except asyncio.CancelledError:
            with contextlib.suppress(RedisError, OSError, TimeoutError):
                async with asyncio.timeout(1.0):
                    for one in await taking:
                        await self._deliveries.again(one.job_id, 0.0, tried=False)
            raise

    def _begin(self, due: Due) -> None:
        task = asyncio.create_task(self._guarded(due))
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    async def _guarded(self, due: Due) -> None:
        try:
            await self._deliver(due)
        except ResponseError:  # a fault of ours, no lost Redis
            _log.exception("webhook broke", job_id=due.job_id)
        except (RedisError, OSError):
            pass  # it is due again when the hold ends
        except asyncio.CancelledError:
            with contextlib.suppress(RedisError, OSError, TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._deliveries.again(due.job_id, 0.0, tried=False)
            raise
        except Exception:  # one bad delivery must not end the others, nor come back at once
            _log.exception("webhook broke", job_id=due.job_id)

    async def _deliver(self, due: Due) -> None:
        record = await self._reader.get(due.job_id)
        if record is None or record.request.webhook_url is None:  # expired with its pictures
            await self._deliveries.done(due.job_id)
            return
        host = urlsplit(record.request.webhook_url).netloc
        shares = {f"host {host}": _AT_ONCE_PER_HOST, f"owner {record.owner}": _AT_ONCE_PER_OWNER}
        for share, most in shares.items():
            if self._busy[share] >= most:
                await self._deliveries.park(due.job_id, share, _PARKED_S)
                if self._busy[share] < most:  # they have ended meanwhile
                    await self._begin_parked(share)
                return
        self._busy.update(shares.keys())
        try:
            answer = await self._caller.call(
                record.request.webhook_url, await self._present(record)
            )
            await self._note(record, due, host, answer)
        finally:
            self._busy.subtract(shares.keys())
            self._busy += Counter()  # forgets who has none
        for share in shares:
            await self._begin_parked(share)

    async def _begin_parked(self, share: str) -> None:
        for one in await self._deliveries.unpark(share, _HOLD_S):
            if len(self._calls) < _AT_ONCE:
                self._begin(one)
            else:  # the place that is left goes to what is due first, for anyone
                await self._deliveries.again(one.job_id, 0.0, tried=False)

    async def _note(self, record: JobRecord, due: Due, host: str, answer: Answer) -> None:
        told = _log.bind(
            host=host, attempt=due.attempts + 1, answer=answer.reason, **record.log_fields
        )
        if answer.delivered:
            await self._deliveries.done(record.id)
            self._count("delivered")
            told.info("webhook delivered")
            return
        wait_s = max(self._wait_s(due.attempts), answer.retry_after_s or 0.0)
        ended = record.finished_at or record.created_at
        if answer.final or time.time() + wait_s > ended + _GIVE_UP_AFTER_S:
            await self._deliveries.done(record.id)
            self._count("given_up")
            told.warning("webhook given up")
            return
        await self._deliveries.again(record.id, wait_s)
        self._count("retried")
        told.info("webhook not delivered, trying again", in_s=round(wait_s, 1))

    def _wait_s(self, attempts: int) -> float:
        wait_s = min(self._first_wait_s * _LATER ** min(attempts, 20), _LONGEST_WAIT_S)
        return wait_s * random.uniform(0.8, 1.2)  # noqa: S311 - not all at once after an outage
