"""Jobs whose worker vanished go back to their queue; images past their time are deleted."""

import time
from collections.abc import Container
from contextlib import suppress
from typing import cast

import structlog
from redis import Redis
from rq.worker_registration import clean_worker_registry

from app import keys
from app.jobs.record import JobRecord, JobStatus, Problem, RecordTooNew
from app.jobs.room import Room
from app.jobs.store import JobStore
from app.storage.base import ImageStorage, StorageError
from worker import problems
from worker.ledger import Held, Ledger, Lost
from worker.results import discard, image_names
from worker.rq_json import GenerateQueue, JSONSerializer

__all__ = ["Recovery"]

_log = structlog.get_logger()
_IMAGES_AT_ONCE = 100
_EXPIRE_WITHIN_S = 0.5  # storage may be slow, and the worker's heart has to beat
_FAILURES_LOOKED_AT = 64


class Recovery:
    """Upkeep that any worker may do at any time: each step is done once, by whoever comes first."""

    def __init__(
        self, redis: Redis, store: JobStore, ledger: Ledger, storage: ImageStorage
    ) -> None:
        self._redis = redis
        self._store = store
        self._ledger = ledger
        self._storage = storage
        self._room = Room(redis)

    def recover(self, own: Container[str]) -> int:
        """Take care of every job whose lease ran out, but for this worker's `own` executions.

        Returns:
            How many there were.
        """
        lost = []
        for one in self._ledger.lost():
            with suppress(RecordTooNew):  # a worker of that release will take care of it
                lost.append((one, self._record(one.job_id)))
        # Each goes to the front of its queue, so the oldest must come last.
        lost.sort(key=lambda pair: pair[1].created_at if pair[1] else 0.0, reverse=True)
        strangers = [(one, record) for one, record in lost if one.execution not in own]
        for one, record in strangers:
            self._recover(one, record)
        return len(strangers)

    def _record(self, job_id: str) -> JobRecord | None:
        try:
            return self._store.get(job_id)
        except RecordTooNew:
            raise
        except ValueError:  # not a record
            return None

    def _recover(self, lost: Lost, record: JobRecord | None) -> None:
        held = self._ledger.adopt(lost)
        if held is None:
            if record is not None and record.execution in (None, lost.execution):
                self._fail_record(record, problems.entry_invalid())
            return
        if record is None or self._taken_since(lost, record):
            self._ledger.drop(held)
        elif record.status.terminal:
            self._agree(held, record)
        elif record.status is JobStatus.QUEUED:  # its worker vanished before it began
            self._ledger.hand_back(held, spend_retry=False)
        else:
            self._begin_again(lost, held, record)

    def _taken_since(self, lost: Lost, record: JobRecord) -> bool:
        return record.status is JobStatus.RUNNING and record.execution != lost.execution

    def _agree(self, held: Held, record: JobRecord) -> None:
        """Close RQ's side as the record was closed: the worker vanished between the two."""
        if record.status is JobStatus.SUCCEEDED:
            self._ledger.succeed(held, len(record.images))
        elif record.status is JobStatus.FAILED:
            self._ledger.fail(held, record.error.detail if record.error else "")
        else:
            self._ledger.cancel(held, record.retention_s)

    def _begin_again(self, lost: Lost, held: Held, record: JobRecord) -> None:
        _log.warning("job of a lost worker", worker=record.worker, **record.log_fields)
        if held.job.retries_left:
            fenced = self._store.requeue(record.id, lost.execution)
            self._ledger.hand_back(held, spend_retry=True)
        else:
            fenced = self._fail_record(record, problems.worker_lost(record.attempts))
            self._ledger.fail(held, "its worker was lost, and no retry was left")
        if fenced:  # only now: until then the old worker might still have finished it
            discard(self._storage, image_names(record, lost.execution))

    def _fail_record(self, record: JobRecord, problem: Problem) -> bool:
        return self._store.finish(record.id, record.execution, JobStatus.FAILED, error=problem)

    def agree_on_failures(self) -> None:
        """Fail the records of jobs that another program, as `rq info`, declared abandoned."""
        for name in keys.QUEUES:
            failed = self._redis.zrevrange(f"rq:failed:{name}", 0, _FAILURES_LOOKED_AT - 1)
            for job_id in cast(list[bytes], failed):
                self._agree_on_failure(name, job_id.decode("utf-8", "replace"))

    def _agree_on_failure(self, queue: str, job_id: str) -> None:
        if self._redis.hget(keys.job(job_id), "status") not in (b"running", b"queued"):
            return
        with suppress(RecordTooNew):
            self._agree_on_record(queue, job_id, self._record(job_id))

    def _agree_on_record(self, queue: str, job_id: str, record: JobRecord | None) -> None:
        if record is not None and self._redis.lpos(keys.rq_queue(queue), job_id) is None:
            self._fail_record(record, problems.worker_lost(record.attempts))

    def expire_images(self) -> int:
        """Delete images past their time, the oldest first, a bounded number; how many it were."""
        names = self._room.expired(time.time(), _IMAGES_AT_ONCE)
        end = time.monotonic() + _EXPIRE_WITHIN_S
        done = [
            name
            for name in names
            if time.monotonic() < end and self._delete(name.decode("utf-8", "replace"))
        ]
        self._room.forget(done)
        return len(done)

    def _delete(self, name: str) -> bool:
        try:
            self._storage.delete(name)
        except ValueError:  # not an image name; nothing of ours
            _log.warning("no image name among the images to expire", name=name)
        except StorageError as fault:
            _log.warning("expired image stays", name=name, reason=str(fault))
            return False
        return True

    def tidy_registries(self) -> None:
        """Forget what ended long ago, and workers that are gone, as RQ does now and then."""
        now = time.time()
        self._room.mend()
        for name in keys.QUEUES:
            self._redis.zremrangebyscore(f"rq:finished:{name}", "-inf", now)
            self._redis.zremrangebyscore(f"rq:failed:{name}", "-inf", now)
            queue = GenerateQueue(name, connection=self._redis, serializer=JSONSerializer)
            clean_worker_registry(queue)
