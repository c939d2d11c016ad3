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
# Of the job that RQ itself writes once, for all others to follow; they occur nowhere else in it.
_ANY_ID, _ANY_TIME = "the-jobs-id", "when-it-was-made"
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
        self._words_of_any = lru_cache(_KINDS)(self._write_words)

    def words(self, record: JobRecord) -> str:
        """The fields of `rq:job:{id}` as queued: a JSON array of field, value, field, value, …"""
        result_ttl_s = min(keys.RQ_RESULT_TTL_S, record.retention_s)
        made = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        of_any = self._words_of_any(record.request.priority, result_ttl_s)
        return of_any.replace(_ANY_ID, record.id).replace(_ANY_TIME, made)

    def _write_words(self, name: str, result_ttl_s: int) -> str:
        """Those of any job; RQ itself would take far too long for each."""
        own = {
            # RQ compresses it, and reads it as it is just as well.
            "data": to_json((keys.GENERATE, None, [_ANY_ID], {})).decode(),
            "created_at": _ANY_TIME,
            "enqueued_at": _ANY_TIME,
        }
        fields = self._written_by_rq(name, result_ttl_s) | own
        return to_json([word for field in fields.items() for word in field]).decode()

    def _written_by_rq(self, name: str, result_ttl_s: int) -> dict[str, str]:
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
