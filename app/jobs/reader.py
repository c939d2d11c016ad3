"""What the API reads: records, an owner's list, model cards, live workers."""

import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import structlog
from pydantic import ValidationError
from redis.asyncio import Redis

from app import keys
from app.jobs.models import ModelCard
from app.jobs.record import JobRecord, JobStatus, RecordTooNew, from_hash

__all__ = ["JobReader", "Mark", "ModelCards", "Page", "Position", "live_workers"]

_log = structlog.get_logger()

_BATCH = 200
# A page that filters out more than this ends early with a cursor; bounds the work of one request.
_MOST_SCANNED = 10_000


@dataclass(frozen=True)
class Position:
    """A place in an owner's list: the job listed last."""

    created_at: float
    job_id: str


class Mark(NamedTuple):
    """How far a job is."""

    status: JobStatus
    attempts: int
    step: int


@dataclass(frozen=True)
class Page:
    """Some of an owner's jobs, newest first, and where the rest begins."""

    records: list[JobRecord]
    next: Position | None


class JobReader:
    """Job records over an asyncio client with `decode_responses=False`."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def get(self, job_id: str) -> JobRecord | None:
        """The record, or None when there is none (any more); raises RecordTooNew."""
        return from_hash(
            await cast(Awaitable[dict[bytes, bytes]], self._redis.hgetall(keys.job(job_id)))
        )

    async def many(self, job_ids: Sequence[str]) -> list[JobRecord | None]:
        """The records of these jobs in one round trip, None where there is none for us."""
        pipe = self._redis.pipeline(transaction=False)
        for job_id in job_ids:
            pipe.hgetall(keys.job(job_id))
        return [_readable(fields) for fields in await pipe.execute()] if job_ids else []

    async def marks(self, job_ids: Sequence[str]) -> list[Mark | None]:
        """How far these jobs are, in one round trip; cheaper than their records."""
        pipe = self._redis.pipeline(transaction=False)
        for job_id in job_ids:
            pipe.hmget(keys.job(job_id), "status", "attempts", "step")
        replies = await pipe.execute() if job_ids else []
        return [
            None if None in reply else Mark(JobStatus(reply[0].decode()), *map(int, reply[1:]))
            for reply in replies
        ]

    async def page(
        self, owner: str, *, limit: int, after: Position | None, status: JobStatus | None
    ) -> Page:
        """Up to `limit` jobs of `owner` older than `after`, those of `status` where given.

        New jobs go to the front, so pages that follow are not disturbed by them.
        """
        found: list[JobRecord] = []
        position, scanned = after, 0
        while scanned < _MOST_SCANNED:
            ids = await self._ids_after(owner, position)
            for place, record in zip(ids, await self._load(owner, ids), strict=True):
                if record is not None and (status is None or record.status is status):
                    if len(found) == limit:
                        return Page(found, position)
                    found.append(record)
                position = place
            scanned += len(ids)
            if len(ids) < _BATCH:
                return Page(found, None)
        return Page(found, position)

    async def _ids_after(self, owner: str, after: Position | None) -> list[Position]:
        """The next ids, newest first; jobs of one microsecond are ordered by id."""
        highest = "+inf" if after is None else repr(after.created_at)
        start, places = 0, list[Position]()
        while len(places) < _BATCH:
            rows = await cast(
                Awaitable[list[tuple[bytes, float]]],
                self._redis.zrevrangebyscore(
                    keys.owner_jobs(owner), highest, "-inf", start, _BATCH, withscores=True
                ),
            )
            batch = [Position(score, job_id.decode()) for job_id, score in rows]
            places += [place for place in batch if after is None or _older(place, after)]
            start += _BATCH
            if len(rows) < _BATCH:
                break
        return places[:_BATCH]

    async def _load(self, owner: str, places: Sequence[Position]) -> list[JobRecord | None]:
        records = await self.many([place.job_id for place in places])
        missing = [
            place.job_id for place, record in zip(places, records, strict=True) if record is None
        ]
        if missing:
            await self._forget_expired(owner, missing)
        return records

    async def _forget_expired(self, owner: str, missing: Sequence[str]) -> None:
        """The list forgets jobs when it is next read; but not those of a later release."""
        pipe = self._redis.pipeline(transaction=False)
        for job_id in missing:
            pipe.exists(keys.job(job_id))
        there = await pipe.execute()
        gone = [job_id for job_id, found in zip(missing, there, strict=True) if not found]
        if gone:
            await self._redis.zrem(keys.owner_jobs(owner), *gone)


def _readable(fields: dict[bytes, bytes]) -> JobRecord | None:
    try:
        return from_hash(fields)
    except RecordTooNew:
        return None


def _older(place: Position, than: Position) -> bool:
    return (place.created_at, place.job_id) < (than.created_at, than.job_id)


class ModelCards:
    """The models that workers have announced, read at most every two seconds."""

    FRESH_S = 2.0

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._cards: dict[str, ModelCard] = {}
        self._default: ModelCard | None = None
        self._read_at = float("-inf")

    async def all(self) -> dict[str, ModelCard]:
        """Cards by name, sorted by name."""
        if not self._cards or time.monotonic() - self._read_at > self.FRESH_S:
            raw = await cast(Awaitable[dict[bytes, bytes]], self._redis.hgetall(keys.MODELS))
            cards = [card for text in raw.values() if (card := _read_card(text)) is not None]
            self._cards = {card.name: card for card in sorted(cards, key=lambda card: card.name)}
            marked = (card for card in self._cards.values() if card.is_default)
            self._default = next(marked, next(iter(self._cards.values()), None))
            self._read_at = time.monotonic()
        return self._cards

    @property
    def default(self) -> ModelCard | None:
        """Of the cards last read the one marked as default, else the first; None of none."""
        return self._default


def _read_card(text: bytes) -> ModelCard | None:
    try:
        return ModelCard.model_validate_json(text)
    except ValidationError as error:
        _log.warning("model card not understood", faults=error.error_count())
        return None


async def live_workers(redis: Redis) -> int:
    """How many RQ workers have sent a heartbeat in time."""
    names = await cast(Awaitable[set[bytes]], redis.smembers(keys.RQ_WORKERS))
    return int(await redis.exists(*names)) if names else 0
