"""Job records for workers: the transitions a worker may make, each atomic and fenced."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from redis import Redis

from app import keys
from app.jobs import scripts
from app.jobs.record import JobRecord, JobStatus, Problem, StoredImage, from_hash, images_json

__all__ = ["JobStore", "Wishes"]

Ended = Callable[[JobStatus, Problem | None], None]


@dataclass(frozen=True)
class Wishes:
    """What is wanted of the jobs that a worker runs."""

    evict: Sequence[str] = ()  # ids: cancellation asked for, superseded, or gone
    previews: Mapping[str, int] = field(default_factory=dict)  # by id, of each picture


class JobStore:
    """Job records over a blocking client with `decode_responses=False`.

    An execution is the worker's token for one attempt. What a superseded execution tries to
    write is refused, so that a worker which slept past its lease changes nothing.
    """

    def __init__(self, redis: Redis, ended: Ended = lambda *_: None) -> None:
        """`ended` is told of every job that this store ends."""
        self._redis = redis
        self._ended = ended
        self._start = redis.register_script(scripts.START)
        self._progress = redis.register_script(scripts.PROGRESS)
        self._finish = redis.register_script(scripts.FINISH)
        self._requeue = redis.register_script(scripts.REQUEUE)

    def get(self, job_id: str) -> JobRecord | None:
        """The record, or None when there is none (any more)."""
        return from_hash(cast(dict[bytes, bytes], self._redis.hgetall(keys.job(job_id))))

    def start(self, job_id: str, execution: str, worker: str) -> JobRecord | None:
        """Take a queued job, or a running one whose execution was lost.

        Returns:
            The running record; None when the job is over, gone, or its cancellation was asked
            for (it is canceled then).
        """
        taken = self._start(keys=[keys.job(job_id)], args=[job_id, execution, worker, _now()])
        return self.get(job_id) if taken == 1 else None

    def progress(self, rows: Sequence[tuple[str, str, int]]) -> Wishes:
        """Record (job id, execution, steps done) of many jobs in one round trip."""
        if not rows:
            return Wishes()
        reply = self._progress(
            keys=[keys.job(job_id) for job_id, _, _ in rows],
            args=[value for row in rows for value in row],
        )
        evict, previews = cast(tuple[list[bytes], list[bytes]], reply)
        counts = zip(previews[::2], previews[1::2], strict=True)
        return Wishes(
            evict=[job_id.decode() for job_id in evict],
            previews={job_id.decode(): int(count) for job_id, count in counts},
        )

    def finish(
        self,
        job_id: str,
        execution: str | None,
        status: JobStatus,
        *,
        images: Sequence[StoredImage] = (),
        warnings: Sequence[str] = (),
        error: Problem | None = None,
        repeats: str | None = None,
    ) -> bool:
        """End a running job of this execution; `execution=None` ends a job still queued.

        `repeats`: the key (`repeat_key`) under which its images answer the next such request.

        Returns:
            False when another execution has it or it is over: delete your images then.

        Raises:
            ValueError: `status` is not terminal, or `failed` without `error`.
        """
        if not status.terminal:
            raise ValueError(f"status {status!r} should be succeeded, failed or canceled")
        if (status is JobStatus.FAILED) != (error is not None):
            raise ValueError(f"error goes with status 'failed' and no other, not {status!r}")
        args = [
            *(job_id, execution or "", status.value, _now()),
            *(images_json(images), json.dumps(list(warnings), ensure_ascii=False)),
            error.model_dump_json() if error is not None else "",
            *(part for image in images for part in (image.name, image.bytes)),
        ]
        named = [keys.job(job_id)] if repeats is None else [keys.job(job_id), repeats]
        written = bool(self._finish(keys=named, args=args))
        if written:
            self._ended(status, error)
        return written

    def requeue(self, job_id: str, execution: str) -> bool:
        """Give a running job of this execution back to the queue (RQ's side is the caller's)."""
        return bool(self._requeue(keys=[keys.job(job_id)], args=[job_id, execution]))


def _now() -> str:
    return f"{time.time():.6f}"
