"""Job events: one subscription per API process, handed on to all who wait in it."""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Iterator
from typing import cast

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from app import keys
from app.jobs.reader import JobReader
from app.jobs.record import JobRecord, JobStatus

__all__ = ["EventHub"]

_log = structlog.get_logger()

# Pub/sub may lose messages, so those who wait also look this often.
_LOOK_EVERY_S = 2.0
_RECONNECT_AFTER_S = 0.5


class EventHub:
    """Wakes those who wait for a job to end."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._reader = JobReader(redis)
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    async def start(self) -> None:
        """Subscribe in the background; a lost Redis is tried again until `close`."""
        if self._task is None:
            self._task = asyncio.create_task(self._listen(), name="job-events")

    async def close(self) -> None:
        """Unsubscribe."""
        self._closed = True  # redis-py may swallow a cancellation while it connects
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def wait_until_terminal(self, job_id: str, timeout_s: float) -> JobRecord | None:
        """The record as soon as it is terminal, or as it is after `timeout_s`; None when gone.

        Raises:
            RedisError: Redis is away, and was still after `timeout_s`.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        with self._woken(job_id) as changed:
            while True:
                changed.clear()
                try:
                    record = await self._reader.get(job_id)
                    if record is None or record.status.terminal or loop.time() >= deadline:
                        return record
                except RedisError:  # the job is safe: who waits need not know, if it comes back
                    if loop.time() >= deadline:
                        raise
                with contextlib.suppress(TimeoutError):
                    left = max(0.0, deadline - loop.time())
                    await asyncio.wait_for(changed.wait(), min(left, _LOOK_EVERY_S))

    @contextlib.contextmanager
    def _woken(self, job_id: str) -> Iterator[asyncio.Event]:
        changed = asyncio.Event()
        self._waiting.setdefault(job_id, set()).add(changed)
        try:
            yield changed
        finally:
            self._waiting[job_id].discard(changed)
            if not self._waiting[job_id]:
                del self._waiting[job_id]

    async def _listen(self) -> None:
        while not self._closed:
            try:
                await self._subscribe()
            except (RedisError, OSError) as error:
                _log.warning("job events lost, subscribing again", reason=type(error).__name__)
                await asyncio.sleep(_RECONNECT_AFTER_S)

    async def _subscribe(self) -> None:
        async with self._redis.pubsub(ignore_subscribe_messages=True) as pubsub:
            await cast(Awaitable[None], pubsub.subscribe(keys.EVENTS))
            while not self._closed:
                message = await pubsub.get_message(timeout=1.0)
                if message is not None:
                    self._dispatch(message["data"])

    def _dispatch(self, data: bytes) -> None:
        try:
            event = json.loads(data)
            ended = event["kind"] == "status" and JobStatus(event["status"]).terminal
            waiting = self._waiting.get(event["job_id"], set()) if ended else set()
        except (ValueError, KeyError, TypeError):
            _log.warning("job event not understood", bytes=len(data))
            return
        for changed in waiting:
            changed.set()
