"""RQ's books: which jobs a worker holds, and how they ended.

Each entry is written by RQ's own functions into a pipeline that is never sent as such: its commands
go to one Lua script which runs them all if a guard command still finds the job where it was. So a
worker killed at any point leaves either a waiting job or a held one whose lease runs out, and one
that lost its lease cannot change the books.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

from redis import Redis
from redis.client import Pipeline
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from rq.executions import Execution
from rq.job import JobStatus as RqStatus
from rq.utils import now, utcformat

from app import keys
from worker.rq_json import GenerateJob, GenerateQueue, JSONSerializer
from worker.waiting import Unfit, Waiting, read_job

__all__ = ["Held", "Ledger", "Lost"]

_GUARDED = """
-- ARGV: number of arguments, then those, of the guard and of each command after it.
-- Returns 1 when the guard found something and all commands ran, else 0.
local at, first = 1, true
while at <= #ARGV do
  local count = tonumber(ARGV[at])
  local reply = redis.call(unpack(ARGV, at + 1, at + count))
  if first and (not reply or reply == 0) then return 0 end
  at, first = at + count + 1, false
end
return 1
"""
_REFUSED_TTL_S = 86400


@dataclass(frozen=True, eq=False)
class Held:
    """A job that a worker has taken."""

    queue: str
    job: GenerateJob
    execution: Execution


@dataclass(frozen=True)
class Lost:
    """An entry among the started jobs whose lease ran out."""

    queue: str
    job_id: str
    execution: str
    entry: bytes  # as it stands there


class Ledger:
    """RQ's side of a job's life, as one worker writes it."""

    def __init__(self, redis: Redis, worker: str, lease_s: int) -> None:
        self._redis = redis
        self._worker = worker
        # One second less, since RQ writes times in whole seconds and recovery looks every second.
        self._lease_s = lease_s - 1
        self._guarded = redis.register_script(_GUARDED)
        self._queues = {
            name: GenerateQueue(name, connection=redis, serializer=JSONSerializer)
            for name in keys.QUEUES
        }
        for queue in self._queues.values():
            queue.redis_server_version = (6, 2, 0)  # spares a round trip; nothing newer is needed

    def claim(self, waiting: Waiting) -> Held | None:
        """Take a waiting job under this worker's lease; None when it is not in its queue now."""
        job, pipe = waiting.job, self._pipe()
        execution = Execution.create(job, self._lease_s, pipe, worker_name=self._worker)
        job.prepare_for_execution(self._worker, pipeline=pipe)
        pipe.persist(job.key)
        taken = self._run(["LREM", keys.rq_queue(waiting.queue), 0, job.id], pipe)
        return Held(waiting.queue, job, execution) if taken else None

    def beat(self, held: Iterable[Held], worker_beat: Callable[[Pipeline], None]) -> bool:
        """Renew the lease of all held jobs and of the worker, in one round trip.

        Returns:
            Whether the worker was still registered.
        """
        pipe = self._pipe()
        worker_beat(pipe)  # its first command is an HSET of a field that is there
        for one in held:
            one.execution.heartbeat(one.job.started_job_registry, self._lease_s, pipeline=pipe)
        return bool(pipe.execute()[0] == 0)

    def succeed(self, held: Held, pictures: int) -> None:
        """Close a job that has its pictures."""
        job, pipe = held.job, self._pipe()
        ttl = job.get_result_ttl(keys.RQ_RESULT_TTL_S)
        job._result = {"images": pictures}
        ended = self._ended(held, pipe, "successful_job_count")
        job._handle_success(ttl, pipe, **ended)
        job.cleanup(ttl, pipeline=pipe, remove_from_queue=False)
        self._let_go(held, pipe)

    def fail(self, held: Held, reason: str) -> None:
        """Close a job that failed for good."""
        job, pipe = held.job, self._pipe()
        job.set_status(RqStatus.FAILED, pipeline=pipe)
        ended = self._ended(held, pipe, "failed_job_count")
        job._handle_failure(reason, pipe, **ended)
        self._let_go(held, pipe)

    def cancel(self, held: Held, kept_s: int) -> None:
        """Close a job that was canceled, as the API does with a waiting one."""
        pipe, key = self._pipe(), held.job.key
        pipe.hset(key, "status", RqStatus.CANCELED.value)
        pipe.hset(key, "ended_at", utcformat(now()))
        pipe.expire(key, kept_s)
        pipe.zadd(keys.rq_canceled(held.queue), {held.job.id: time.time()})
        self._let_go(held, pipe)

    def hand_back(self, held: Held, *, spend_retry: bool) -> None:
        """Put a job back to the front of its queue, and wake the workers."""
        job, pipe = held.job, self._pipe()
        if spend_retry:
            job.retries_left = max(0, (job.retries_left or 0) - 1)
        self._queues[held.queue]._enqueue_job(job, pipeline=pipe, at_front=True)
        pipe.publish(keys.WAKEUPS, held.queue)
        self._let_go(held, pipe)

    def drop(self, held: Held) -> None:
        """Let go of a job that another execution has; the rest is not touched."""
        self._let_go(held, self._pipe())

    def lost(self) -> list[Lost]:
        """Held jobs, of any worker, whose lease ran out; in no order."""
        pipe = self._pipe()
        for name in keys.QUEUES:
            pipe.zrangebyscore(_started(name), "-inf", time.time())
        found = zip(keys.QUEUES, pipe.execute(), strict=True)
        return [_lost(name, entry) for name, entries in found for entry in entries]

    def adopt(self, lost: Lost) -> Held | None:
        """A lost entry as if this worker held it, to close it or hand it back.

        Returns:
            None when RQ's job is gone or unreadable; the entry is gone then, too.
        """
        execution = Execution(lost.execution, lost.job_id, self._redis, worker_name=self._worker)
        try:
            fields = cast(dict[bytes, bytes], self._redis.hgetall(keys.rq_job(lost.job_id)))
            job = read_job(self._redis, lost.job_id, fields)
        except (RedisConnectionError, RedisTimeoutError):
            raise
        except Exception:  # whatever lies in Redis
            self._redis.zrem(_started(lost.queue), lost.entry)
            return None
        execution.worker_name = job.worker_name or ""
        return Held(lost.queue, job, execution)

    def refuse(self, unfit: Unfit) -> bool:
        """Take an entry that cannot be run out of its queue; False when another worker did."""
        if not self._redis.lrem(keys.rq_queue(unfit.queue), 0, cast(str, unfit.job_id)):
            return False
        key = keys.rq_job(unfit.job_id.decode("utf-8", "replace"))
        with suppress(ResponseError):  # no hash
            if self._redis.exists(key):
                self._redis.hset(key, "status", RqStatus.FAILED.value)
                self._redis.expire(key, _REFUSED_TTL_S)
        return True

    def _ended(self, held: Held, pipe: Pipeline, counter: str) -> dict[str, Any]:
        """Count the job for `rq info`; what RQ's functions want to know of its execution."""
        job, worker = held.job, f"rq:worker:{self._worker}"
        job.ended_at = now()
        started_at = job.started_at or job.ended_at
        pipe.hincrby(worker, counter, 1)
        seconds = (job.ended_at - started_at).total_seconds()
        pipe.hincrbyfloat(worker, "total_working_time", seconds)
        return {
            "worker_name": self._worker,
            "execution_id": held.execution.id,
            "execution_started_at": held.execution.created_at,
            "execution_ended_at": job.ended_at,
        }

    def _let_go(self, held: Held, pipe: Pipeline) -> None:
        """Write `pipe` if the job is still held, and hold it no more; once only."""
        held.execution.delete(held.job, pipe)
        self._run(["ZREM", _started(held.queue), held.execution.composite_key], pipe)

    def _pipe(self) -> Pipeline:
        return self._redis.pipeline(transaction=False)

    def _run(self, guard: Sequence[Any], pipe: Pipeline) -> bool:
        """Run the guard and, if it finds something, all commands of `pipe`, as one step."""
        encode = cast(Any, self._redis).get_encoder().encode
        argv: list[Any] = []
        for command in (guard, *(command for command, _ in pipe.command_stack)):
            argv += [len(command), *(encode(argument) for argument in command)]
        return bool(self._guarded(keys=[], args=argv))


def _started(queue: str) -> str:
    return f"rq:wip:{queue}"


def _lost(queue: str, entry: bytes) -> Lost:
    job_id, _, execution = entry.decode("utf-8", "replace").rpartition(":")
    return Lost(queue, job_id, execution, entry)
