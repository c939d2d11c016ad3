"""The hash that RQ itself would write for one of our jobs."""

from datetime import UTC, datetime
from functools import lru_cache
from typing import cast

from pydantic_core import to_json
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
_ANY_ID = "any"  # of the job that RQ itself writes once, for all others to follow
_KINDS = 64  # of jobs that are remembered: queues × retentions


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
        self._fields = lru_cache(_KINDS)(self._written_by_rq)

    def fields(self, record: JobRecord) -> dict[str, str]:
        """The fields of `rq:job:{id}` as queued."""
        result_ttl_s = min(keys.RQ_RESULT_TTL_S, record.retention_s)
        made = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        call: tuple[object, ...] = (keys.GENERATE, None, [record.id], {})
        own = {
            # RQ compresses it, and reads it as it is just as well.
            "data": to_json(call).decode(),
            "created_at": made,
            "enqueued_at": made,
            "description": f"{keys.GENERATE}({record.id!r})",
        }
        return self._fields(record.request.priority, result_ttl_s) | own

    def _written_by_rq(self, name: str, result_ttl_s: int) -> dict[str, str]:
        """The fields of such a job; for each one RQ would take far too long."""
        queue = self._queues[name]
        job = queue.create_job(
            keys.GENERATE,
            args=[_ANY_ID],
            timeout=self._timeout_s,
            result_ttl=result_ttl_s,
            failure_ttl=self._failure_ttl_s,
            job_id=_ANY_ID,
            retry=Retry(max=self._max_attempts - 1) if self._max_attempts > 1 else None,
        )
        queue._prepare_for_queue(job)
        job.enqueued_at = now()
        args = cast(list[str], _build_hset_args(job))  # type: ignore[no-untyped-call]
        return dict(zip(args[::2], args[1::2], strict=True))
