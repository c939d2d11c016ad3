"""Job events: one subscription per API process, handed on to all who follow jobs in it.

Pub/sub may lose messages, so what is followed is also read every two seconds: all of it by one
task, in few round trips, however many follow.
"""

import asyncio
import contextlib
import itertools
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from app import keys
from app.jobs import scripts
from app.jobs.followers import Follower, Preview, Topic
from app.jobs.outage import Outage
from app.jobs.outlook import Outlook, Outlooks
from app.jobs.reader import JobReader
from app.jobs.record import JobRecord, JobStatus

__all__ = ["EventHub"]

_log = structlog.get_logger()

_LOOK_EVERY_S = 2.0
_READ_WITHIN_S = 5.0
_BATCH = 200  # jobs per round trip: other requests get their turn in between


class EventHub:
    """Keeps followers of jobs up to date."""

    def __init__(self, redis: Redis, outlooks: Outlooks) -> None:
        self._redis = redis
        self._outlooks = outlooks
        self._reader = JobReader(redis)
        self._wish = redis.register_script(scripts.WISH)
        self._topics: dict[str, Topic] = {}
        self._unread: set[str] = set()  # jobs whose record is to be read again
        self._wanted = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.streaming = True
        self.closed = False  # redis-py may swallow a cancellation while it connects

    async def start(self) -> None:
        """Subscribe and read in the background; a lost Redis is tried again until `close`."""
        if not self._tasks:
            self._tasks = [
                asyncio.create_task(self._insist(self._subscribe, "job events"), name="job-events"),
                asyncio.create_task(self._insist(self._keep_up, "job records"), name="job-records"),
            ]

    def release_streams(self) -> None:
        """Let go who can come again elsewhere, because the process is about to end."""
        self.streaming = False
        for topic in self._topics.values():
            topic.wake()

    def release(self) -> None:
        """Let all who follow go: there is no more time."""
        self.closed = True
        self._wanted.set()
        self.release_streams()

    async def close(self) -> None:
        """Release all and unsubscribe."""
        self.release()
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._tasks = []

    @contextlib.contextmanager
    def follow(
        self,
        job_id: str,
        *,
        previews: int = 0,
        only_end: bool = False,
        known: JobRecord | None = None,
    ) -> Iterator[Follower]:
        """A follower of a job, up to date until the context ends; `closed` ends its news.

        `known`: the record where it was just made, so that nothing is missed until it is read.
        """
        topic = self._topics.setdefault(job_id, Topic())
        if not (only_end or topic.detailed):
            topic.record = known  # what was read so far, if anything, is without the place in line
        follower = Follower(topic, previews=previews, only_end=only_end)
        topic.followers.add(follower)
        follower.wake()
        if topic.record is known or topic.unwished:  # None, or not as it is now
            self._read_soon(job_id)
        try:
            yield follower
        finally:
            topic.followers.discard(follower)
            if not topic.followers:
                del self._topics[job_id]

    async def record(self, job_id: str) -> JobRecord | None:
        """The record, read together with what others ask for: thousands may ask at once.

        Raises:
            RedisError: Redis is away.
            RecordTooNew: another release's.
        """
        with self.follow(job_id, only_end=True) as follower, contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_READ_WITHIN_S):
                while not self.closed:
                    if follower.topic.gone:
                        return await self._reader.get(job_id)  # which says why, if not gone
                    if follower.topic.record is not None:
                        return follower.topic.record
                    await follower.wait(_READ_WITHIN_S)
        raise RedisTimeoutError("the record was not read in time")

    async def wait_until_terminal(self, job_id: str, timeout_s: float) -> JobRecord | None:
        """The record as soon as it is terminal, or as it is after `timeout_s`; None when gone.

        Raises:
            RedisError: Redis is away, and was still after `timeout_s`.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        with self.follow(job_id, only_end=True) as follower:
            while not self.closed and (left := deadline - loop.time()) > 0:
                if follower.topic.ended:
                    return follower.topic.record
                await follower.wait(left)
        return await self._reader.get(job_id)

    async def _insist(self, work: Callable[[Outage], Awaitable[None]], what: str) -> None:
        outage, loop = Outage(what), asyncio.get_running_loop()
        while not self.closed:
            try:
                await work(outage)
            except (RedisError, OSError) as error:
                outage.failed(error, loop.time())
                await asyncio.sleep(outage.wait_s(loop.time()))

    async def _subscribe(self, outage: Outage) -> None:
        async with self._redis.pubsub(ignore_subscribe_messages=True) as pubsub:
            await cast(Awaitable[None], pubsub.subscribe(keys.EVENTS))
            while not self.closed:
                message = await pubsub.get_message(timeout=1.0)
                outage.over()
                if message is not None:
                    self._dispatch(message["data"])

    def _dispatch(self, data: bytes) -> None:
        try:
            self._hand_on(json.loads(data))
        except (ValueError, KeyError, TypeError):
            _log.warning("job event not understood", bytes=len(data))

    def _hand_on(self, event: dict[str, Any]) -> None:
        kind = event["kind"]
        if kind == "progress":
            for job_id, (attempt, step) in event["steps"].items():
                if (topic := self._topics.get(job_id)) is not None and topic.detailed:
                    topic.progress(attempt, step)
            return
        topic = self._topics.get(event["job_id"])
        if topic is None:
            return
        if kind == "preview":
            topic.preview(
                Preview(event["attempt"], event["step"], event["index"], event["data_url"])
            )
        elif kind == "status" and (topic.detailed or JobStatus(event["status"]).terminal):
            self._read_soon(event["job_id"])

    def _read_soon(self, job_id: str) -> None:
        self._unread.add(job_id)
        self._wanted.set()

    async def _keep_up(self, outage: Outage) -> None:
        """Read what is to be read, and now and then look at everything."""
        loop = asyncio.get_running_loop()
        look_at = loop.time() + _LOOK_EVERY_S
        while not self.closed:
            self._wanted.clear()
            if loop.time() >= look_at:
                await self._look()
                look_at = loop.time() + _LOOK_EVERY_S
                outage.over()
            while batch := list(itertools.islice(self._unread, _BATCH)):
                await self._read(batch)
                outage.over()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(look_at):
                    await self._wanted.wait()

    async def _read(self, batch: Sequence[str]) -> None:
        """Read whole records; they stay unread until that has worked."""
        topics = {job_id: self._topics[job_id] for job_id in batch if job_id in self._topics}
        self._unread.difference_update(batch)  # what changes meanwhile is read again
        try:
            records = await self._reader.many(list(topics))
            waited_for = [one for one in records if one and topics[one.id].detailed]
            lines = await self._outlooks.of(waited_for)
            await self._wish_for_previews(topics, records)
        except RedisError:
            self._unread.update(topics)
            raise
        views = {record.id: line for record, line in zip(waited_for, lines, strict=True)}
        for (job_id, topic), record in zip(topics.items(), records, strict=True):
            topic.read(record, views.get(job_id, Outlook()))

    async def _wish_for_previews(
        self, topics: Mapping[str, Topic], records: Sequence[JobRecord | None]
    ) -> None:
        """Let workers show as many previews as anybody wants."""
        pipe = self._redis.pipeline(transaction=False)
        for record in records:
            if record is not None and topics[record.id].previews > record.previews:
                args = [topics[record.id].previews]
                await cast(
                    Awaitable[int],
                    self._wish(keys=[keys.job(record.id)], args=args, client=pipe),
                )
        await pipe.execute()

    async def _look(self) -> None:
        """Find what messages did not tell, and where those who wait stand in line."""
        followed = [(id_, one) for id_, one in self._topics.items() if one.record and not one.ended]
        for start in range(0, len(followed), _BATCH):
            batch = followed[start : start + _BATCH]
            marks = await self._reader.marks([job_id for job_id, _ in batch])
            for (job_id, topic), mark in zip(batch, marks, strict=True):
                if mark is None or not topic.agrees(mark):
                    self._read_soon(job_id)
            lines = [topic for _, topic in batch if topic.in_line]
            records = [topic.record for topic in lines if topic.record is not None]
            for topic, outlook in zip(lines, await self._outlooks.of(records), strict=True):
                topic.move(outlook)
