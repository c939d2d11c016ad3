"""Submission and cancellation, each one atomic step in Redis, for the API."""

import time
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import cast

from pydantic_core import to_json
from redis.asyncio import Redis
from rq.utils import now as rq_now
from rq.utils import utcformat

from app import keys
from app.jobs import scripts
from app.jobs.record import JobRecord, JobStatus, to_hash
from app.jobs.rq_job import RqJobs
from app.settings import Settings

__all__ = [
    "Accepted",
    "DaySpent",
    "Idempotency",
    "IdempotencyMismatch",
    "Outcome",
    "QueueFull",
    "Quota",
    "Repeats",
    "Replayed",
    "StorageFull",
    "Submitter",
    "TooManyActive",
]

_DAY_S = 86400
_QUEUES = tuple(keys.rq_queue(queue) for queue in keys.QUEUES)


@dataclass(frozen=True)
class Idempotency:
    """A client's key, and the hash of the body it came with."""

    key: str
    body_sha256: str


@dataclass(frozen=True)
class Accepted:
    """The job is in the queue."""

    job_id: str
    ahead: int = field(default=0, compare=False)  # jobs that will be taken first


@dataclass(frozen=True)
class Replayed:
    """The same key and body came before, and made this job."""

    job_id: str


@dataclass(frozen=True)
class Repeats:
    """Nothing is submitted: this job has the pictures already."""

    job_id: str


@dataclass(frozen=True)
class IdempotencyMismatch:
    """The key was used with another body."""


@dataclass(frozen=True)
class QueueFull:
    """`queue_cap` jobs wait already."""

    waiting: int


@dataclass(frozen=True)
class TooManyActive:
    """The owner has `max_active_jobs_per_key` jobs queued or running."""

    active: int


@dataclass(frozen=True)
class DaySpent:
    """With this job the key would have asked for more pictures today than it may."""

    pictures: int  # so far


@dataclass(frozen=True)
class StorageFull:
    """Its images might take more than `storage_quota_bytes` leaves."""

    room_at: float | None  # unix seconds at which enough will have expired; None: not foreseen


@dataclass(frozen=True)
class Quota:
    """What a key may: jobs of its owner `active` at a time, pictures `per_day` (UTC)."""

    key: str
    active: int | None = None  # None: as the settings say
    per_day: int | None = None


Refusal = QueueFull | TooManyActive | DaySpent | StorageFull
Outcome = Accepted | Replayed | IdempotencyMismatch | Repeats | Refusal


class Submitter:
    """Puts jobs into the queues and takes them out."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._settings = settings
        self._submit = redis.register_script(scripts.SUBMIT)
        self._answer = redis.register_script(scripts.ANSWER)
        self._cancel = redis.register_script(scripts.CANCEL)
        self._rq_jobs = RqJobs(
            timeout_s=settings.job_timeout_s,
            failure_ttl_s=settings.retention_s,
            max_attempts=settings.max_attempts,
        )

    async def submit(
        self,
        record: JobRecord,
        idempotency: Idempotency | None = None,
        repeats: str | None = None,
        quota: Quota = Quota(""),
    ) -> Outcome:
        """Admit, record and enqueue a job, or say why not; all or nothing.

        `repeats`: the key (`repeat_key`) of jobs whose pictures would do as well. Safe to send
        twice: a record that exists already counts as accepted.
        """
        request = record.request
        args: list[str | int | bytes] = [
            *_start(record, idempotency, self._settings.idempotency_ttl_s),
            *(self._settings.queue_cap, quota.active or self._settings.max_active_jobs_per_key),
            *(request.priority, "" if repeats is None else "1"),
            *(_pairs(to_hash(record)), self._rq_jobs.words(record)),
            *(request.model, record.owner, request.rows * request.forwards),
            *(request.n, quota.per_day or ""),
            *(self._settings.storage_quota_bytes or "", request.most_bytes),
        ]
        # Every key is one of ours, also what is not looked at: a user may be held to them.
        unread = keys.repeat(record.owner, "")
        named = _submit_keys(record, idempotency, repeats or unread, quota)
        reply = await cast(Awaitable[list[bytes]], self._submit(keys=named, args=args))
        return _outcome(*(part.decode() for part in reply))

    async def answer(
        self, record: JobRecord, idempotency: Idempotency | None, repeats: str
    ) -> Outcome:
        """Record a job that has succeeded already; later repeats find its pictures.

        Safe to send twice, as `submit` is.
        """
        args: list[str | int | bytes] = [
            *_start(record, idempotency, self._settings.idempotency_ttl_s),
            _pairs(to_hash(record)),
            self._settings.storage_quota_bytes or "",
            sum(image.bytes for image in record.images),
            *(part for image in record.images for part in (image.name, image.bytes)),
        ]
        named = [
            *(keys.job(record.id), keys.owner_jobs(record.owner)),
            *(_idempotency_key(record, idempotency), repeats),
        ]
        reply = await cast(Awaitable[list[bytes]], self._answer(keys=named, args=args))
        return _outcome(*(part.decode() for part in reply))

    async def cancel(self, record: JobRecord) -> JobStatus | None:
        """Cancel a queued job at once, ask the worker of a running one, leave an ended one.

        Returns:
            The status after the call; None when the job is gone.
        """
        queue = record.request.priority
        status = await cast(
            Awaitable[bytes | None],
            self._cancel(
                keys=[
                    *(keys.job(record.id), keys.rq_queue(queue)),
                    *(keys.rq_job(record.id), keys.rq_canceled(queue)),
                ],
                args=[record.id, f"{time.time():.6f}", utcformat(rq_now())],
            ),
        )
        return JobStatus(status.decode()) if status is not None else None


def _start(record: JobRecord, idempotency: Idempotency | None, ttl_s: int) -> list[str | int]:
    """The first arguments of both scripts."""
    body = idempotency.body_sha256 if idempotency is not None else ""
    return [record.id, f"{record.created_at:.6f}", body, ttl_s]


def _pairs(fields: Mapping[str, str]) -> bytes:
    """Fields of a hash as one word of JSON: the client is slow with commands of many words."""
    return to_json([text for field in fields.items() for text in field])


def _idempotency_key(record: JobRecord, idempotency: Idempotency | None) -> str:
    if idempotency is None:
        return _no_idempotency_key(record.owner)
    return keys.idempotency(record.owner, idempotency.key)


@lru_cache(1024)
def _no_idempotency_key(owner: str) -> str:
    return keys.idempotency(owner, "")


@lru_cache(2)
def _day(number: int) -> str:
    """The UTC date of that day since 1970."""
    return time.strftime("%Y-%m-%d", time.gmtime(number * _DAY_S))


def _submit_keys(
    record: JobRecord, idempotency: Idempotency | None, repeats: str, quota: Quota
) -> list[str]:
    return [
        *(keys.job(record.id), keys.owner_jobs(record.owner), keys.owner_active(record.owner)),
        *(_idempotency_key(record, idempotency), keys.rq_job(record.id)),
        *(keys.RQ_QUEUES, keys.rq_queue(record.request.priority), repeats),
        keys.turns(record.request.priority),
        keys.daily(quota.key, _day(int(record.created_at // _DAY_S))),
        *_QUEUES,
    ]


def _outcome(word: str, detail: str, ahead: str = "0") -> Outcome:
    match word:
        case "accepted":
            return Accepted(detail, int(ahead))
        case "replayed":
            return Replayed(detail)
        case "repeats":
            return Repeats(detail)
        case "mismatch":
            return IdempotencyMismatch()
        case "full":
            return QueueFull(int(detail))
        case "busy":
            return TooManyActive(int(detail))
        case "spent":
            return DaySpent(int(detail))
        case "stored":
            return StorageFull(float(detail) if detail else None)
    raise ValueError(f"submission answered {word!r}, which is no known outcome")
