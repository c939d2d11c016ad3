"""The hash that RQ itself would write for one of our jobs."""

from typing import cast

from redis import Redis
from rq import Queue, Retry
from rq.scripts import _build_hset_args
from rq.serializers import JSONSerializer
from rq.utils import now

from app import keys
from app.jobs.record import JobRecord

__all__ = ["RqJobs"]

# Only tells RQ which commands it may use; ours are all older. Spares a round trip.
_REDIS_VERSION = (6, 2, 0)


class RqJobs:
    """Builds RQ jobs by RQ's own functions, without sending anything."""

    def __init__(self, *, timeout_s: int, failure_ttl_s: int, max_attempts: int) -> None:
        connection = Redis()  # RQ wants one; it is never used, so never opened
        self._queues = {
            name: Queue(name, connection=connection, serializer=JSONSerializer)
            for name in keys.QUEUES
        }
        for queue in self._queues.values():
            queue.redis_server_version = _REDIS_VERSION
        self._timeout_s = timeout_s
        self._failure_ttl_s = failure_ttl_s
        self._max_attempts = max_attempts

    def hset_args(self, record: JobRecord) -> list[str | bytes]:
        """Field, value, field, value, … of `rq:job:{id}` as queued; the arguments are JSON."""
        queue = self._queues[record.request.priority]
        job = queue.create_job(
            keys.GENERATE,
            args=[record.id],
            timeout=self._timeout_s,
            result_ttl=min(keys.RQ_RESULT_TTL_S, record.retention_s),
            failure_ttl=self._failure_ttl_s,
            job_id=record.id,
            retry=Retry(max=self._max_attempts - 1) if self._max_attempts > 1 else None,
        )
        queue._prepare_for_queue(job)
        job.enqueued_at = now()
        return cast(list[str | bytes], _build_hset_args(job))  # type: ignore[no-untyped-call]
