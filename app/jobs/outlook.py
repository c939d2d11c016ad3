"""Where a job stands in line, and how long it will take."""

import json
import time
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast

from redis.asyncio import Redis
from redis.exceptions import RedisError

from app import keys
from app.jobs.forecast import Engine, Load, forecast
from app.jobs.ids import made_at
from app.jobs.joint import Joint
from app.jobs.record import JobRecord, JobRequest, JobStatus
from app.jobs.scripts import OLDEST
from app.keys import COME_AGAIN

__all__ = ["Outlook", "Outlooks", "load_of"]

_COME_AGAIN = """
-- KEYS[1] the last time that somebody was told to come again
-- ARGV[1] now   ARGV[2] seconds in which there is room for one more   ARGV[3] most seconds
-- Returns seconds, as text: a time of their own for each, so that they do not all come at once.
local now, most = tonumber(ARGV[1]), tonumber(ARGV[3])
local at = math.max(now, tonumber(redis.call('GET', KEYS[1]) or '0')) + tonumber(ARGV[2])
at = math.min(at, now + most)
redis.call('SET', KEYS[1], string.format('%.6f', at), 'EX', math.ceil(most) + 1)
return string.format('%.6f', at - now)
"""

_FRESH_S = 0.5  # one look at the queues serves all who ask meanwhile
_SHARE = 0.1  # of the time at most goes into looking: a long queue is looked at less often
_LONGEST_S = 60.0
_DEEPEST = 2000  # jobs of a queue that are played forward; those behind are estimated by work


@dataclass(frozen=True)
class Outlook:
    """Both are None where they are not known or have no meaning."""

    queue_position: int | None = None  # jobs that will be taken first
    eta_s: float | None = None  # seconds until the job is likely done


@dataclass
class _Model:
    """What is known of one model: its engines, and when its jobs will be done."""

    engines: list[Engine] = field(default_factory=list)
    workers: list[str] = field(default_factory=list)
    running: dict[int, list[Load]] = field(default_factory=dict)
    waiting: dict[str, list[Load]] = field(default_factory=dict)  # by queue
    ends: dict[str, float] = field(default_factory=dict)  # seconds from the look

    def play(self, patience_s: float) -> None:
        """Fill `ends`."""
        if self.engines:
            line = [self.waiting.get(queue, []) for queue in keys.QUEUES]
            self.ends = forecast(self.engines, self.running, line, patience_s, time.time())

    def end_of(self, load: Load, record: JobRecord, ahead: int | None) -> float:
        """Seconds for a job that came after the look: among those that run, or in its queue."""
        if record.status is JobStatus.RUNNING:
            return forecast(self.engines[:1], {0: [*self.running.get(0, ()), load]}, [])[
                load.job_id
            ]
        queue = record.request.priority
        higher = keys.QUEUES[: keys.QUEUES.index(queue)]
        before = [one for name in higher for one in self.waiting.get(name, ())]
        own = self.waiting.setdefault(queue, [])
        place = len(own) if ahead is None else max(0, ahead - len(before))
        before += own[:place]
        before += [one for loads in self.running.values() for one in loads]
        own.insert(place, load)
        rate = sum(one.micro_batch / one.seconds_per_call for one in self.engines)
        alone = min(forecast([engine], {}, [[load]])[load.job_id] for engine in self.engines)
        return max(alone, sum(map(_work, [*before, load])) / rate)


def _jobs_per_s(models: Iterable[_Model]) -> float:
    """How many of the jobs that wait are taken in a second."""
    found = 0.0
    for model in models:
        waiting = [one for loads in model.waiting.values() for one in loads]
        rate = sum(one.micro_batch / one.seconds_per_call for one in model.engines)
        work = sum(map(_work, waiting))
        found += len(waiting) * rate / work if work else 0.0
    return found


def load_of(
    job_id: str, request: JobRequest, steps_left: float, since: float = 0.0, started: float = 0.0
) -> Load:
    """What a job still asks of an engine."""
    forwards = request.forwards / request.taken
    return Load(job_id, request.rows, steps_left, forwards, since, request.priority, started)


def _work(load: Load) -> float:
    return load.rows * load.steps * load.forwards


class Outlooks:
    """Looks at the queues and the workers now and then, and plays forward what they will do."""

    def __init__(self, redis: Redis, patience_s: float) -> None:
        self._redis = redis
        self._patience_s = patience_s
        self._looking = Joint(self._look)
        self._models: dict[str, _Model] = {}
        self._loads: dict[str, tuple[str, Load]] = {}  # by job: its model, and what it asks
        self._looked_at = float("-inf")
        self._look_again_at = float("-inf")
        self._come_again = redis.register_script(_COME_AGAIN)

    async def of(
        self, records: Sequence[JobRecord], ahead: Mapping[str, int] | None = None
    ) -> list[Outlook]:
        """The outlook of each record; `ahead`: how many jobs are before each, where it is known."""
        open_ones = [record for record in records if not record.status.terminal]
        if not open_ones:
            return [Outlook()] * len(records)
        if ahead is None:
            ahead = await self._positions(open_ones)
        with suppress(RedisError):  # an estimate is worth no answer
            await self._look_if_due()
        return [self._outlook(record, ahead.get(record.id)) for record in records]

    async def room_s(self) -> float | None:
        """Seconds until there is room in the queues for one more, after all who were told so.

        At most as long as it takes until nothing waits; None where that is not known.
        """
        await self._look_if_due()
        models = self._models.values()
        per_s = _jobs_per_s(models)
        if not per_s:
            return None
        waiting = sum(len(loads) for model in models for loads in model.waiting.values())
        most = max(1.0, min(_LONGEST_S, waiting / per_s))
        args = [f"{time.time():.6f}", f"{1 / per_s:.6f}", f"{most:.6f}"]
        return float(await cast(Awaitable[bytes], self._come_again([COME_AGAIN], args)))

    async def next_end_s(self, job_ids: Sequence[str]) -> float | None:
        """Seconds until the first of these jobs is done; None where that is not known."""
        await self._look_if_due()
        since = time.monotonic() - self._looked_at
        ends = [
            model.ends[job_id] - since
            for model in self._models.values()
            for job_id in job_ids
            if job_id in model.ends
        ]
        return max(0.0, min(ends)) if ends else None

    async def _look_if_due(self) -> None:
        if time.monotonic() >= self._look_again_at:
            await self._looking.done()

    def _outlook(self, record: JobRecord, ahead: int | None) -> Outlook:
        if record.status.terminal:
            return Outlook()
        position = ahead if record.status is JobStatus.QUEUED else None
        eta_s = self._eta_s(record, ahead)
        return Outlook(position, None if eta_s is None else round(eta_s, 3))

    def _eta_s(self, record: JobRecord, ahead: int | None) -> float | None:
        model = self._models.get(record.request.model)
        if model is None or not model.engines:
            return None
        since = time.monotonic() - self._looked_at
        if record.id not in model.ends:  # it came after the look
            left, started = record.total_steps - record.step, record.started_at or 0.0
            load = load_of(record.id, record.request, left, started=started)
            model.ends[record.id] = since + model.end_of(load, record, ahead)
        return max(0.0, model.ends[record.id] - since)

    async def _positions(self, records: Sequence[JobRecord]) -> dict[str, int]:
        """How many jobs will be taken before each that is queued, in one round trip."""
        queued = [record for record in records if record.status is JobStatus.QUEUED]
        if not queued:
            return {}
        pipe = self._redis.pipeline(transaction=False)
        lists = [keys.rq_queue(queue) for queue in keys.QUEUES]
        pipe.eval(OLDEST, len(lists), *lists, 0)
        for queue in lists:
            pipe.llen(queue)
        for record in queued:
            pipe.lpos(keys.rq_queue(record.request.priority), record.id)
        oldest, *replies = await pipe.execute()
        lengths, places = replies[: len(lists)], replies[len(lists) :]
        late = [time.time() - made_at(_text(one)) >= self._patience_s for one in oldest]
        found = {}
        for record, place in zip(queued, places, strict=True):
            at = keys.QUEUES.index(record.request.priority)
            higher = sum(lengths[:at])
            if place is None:  # a worker is just taking it
                found[record.id] = 0
            else:  # a queue whose patience is over has every second turn
                found[record.id] = place + (min(higher, place) if late[at] else higher)
        return found

    async def _look(self) -> None:
        """Read workers and queues, and play them forward."""
        began = time.monotonic()
        workers, running, waiting = await self._read_ids()
        models = await self._read_models(workers)
        known = {job_id for ids in waiting.values() for job_id in ids}
        self._loads = {id_: load for id_, load in self._loads.items() if id_ in known}
        fields = await self._read_jobs([*running, *(known - self._loads.keys())])
        for job_id in running:
            _place_running(models, job_id, fields.get(job_id))
        for queue, ids in waiting.items():
            for job_id in ids:
                if job_id not in self._loads:
                    self._remember(job_id, fields.get(job_id))
                if job_id in self._loads:
                    name, load = self._loads[job_id]
                    if name in models:
                        models[name].waiting.setdefault(queue, []).append(load)
        for model in models.values():
            model.play(self._patience_s)
        self._models, self._looked_at = models, began
        took = time.monotonic() - began
        self._look_again_at = began + max(_FRESH_S, took / _SHARE)

    async def _read_ids(self) -> tuple[list[str], list[str], dict[str, list[str]]]:
        """The registered workers, the jobs that run, and those that wait in each queue."""
        pipe = self._redis.pipeline(transaction=False)
        pipe.smembers(keys.RQ_WORKERS)
        for queue in keys.QUEUES:
            pipe.zrange(keys.rq_running(queue), 0, -1)
            pipe.lrange(keys.rq_queue(queue), 0, _DEEPEST - 1)
        workers, *rest = await pipe.execute()
        running = [_text(entry).rpartition(":")[0] for found in rest[::2] for entry in found]
        waiting = {
            queue: [_text(job_id) for job_id in found]
            for queue, found in zip(keys.QUEUES, rest[1::2], strict=True)
        }
        return sorted(map(_text, workers)), running, waiting

    async def _read_models(self, workers: Sequence[str]) -> dict[str, _Model]:
        """Each loaded model's engines; one that shares its worker is told as if it had it alone."""
        pipe = self._redis.pipeline(transaction=False)
        for worker in workers:
            pipe.hgetall(worker)
        models: dict[str, _Model] = {}
        replies = await pipe.execute() if workers else []
        for worker, fields in zip(workers, replies, strict=True):
            for field_name, speed in fields.items():
                name = _text(field_name)
                if name.startswith(keys.WORKER_SPEED_PREFIX):
                    _add_engine(models, name.removeprefix(keys.WORKER_SPEED_PREFIX), worker, speed)
        return models

    async def _read_jobs(self, job_ids: Sequence[str]) -> dict[str, list[Any]]:
        pipe = self._redis.pipeline(transaction=False)
        for job_id in job_ids:
            pipe.hmget(keys.job(job_id), "request", "step", "worker", "status", "started_at")
        replies = await cast(Awaitable[list[Any]], pipe.execute()) if job_ids else []
        return dict(zip(job_ids, replies, strict=True))

    def _remember(self, job_id: str, fields: Sequence[Any] | None) -> None:
        with suppress(ValueError, TypeError):  # whatever lies there
            request = JobRequest.model_validate_json(fields[0])  # type: ignore[index]
            load = load_of(job_id, request, request.taken, made_at(job_id))
            self._loads[job_id] = request.model, load


def _add_engine(models: dict[str, _Model], name: str, worker: str, speed: bytes) -> None:
    with suppress(ValueError, KeyError, TypeError):  # of another version
        told = json.loads(speed)
        engine = Engine(
            max(1, int(told["slots"])),
            max(1, int(told["micro_batch"])),
            float(told["seconds_per_call"]),
        )
        model = models.setdefault(name, _Model())
        model.engines.append(engine)
        model.workers.append(worker.removeprefix(keys.RQ_WORKER_PREFIX))


def _place_running(models: dict[str, _Model], job_id: str, fields: Sequence[Any] | None) -> None:
    with suppress(ValueError, TypeError, AttributeError):  # over, or its worker is gone
        text, step, worker, status, started = fields  # type: ignore[misc]
        request = JobRequest.model_validate_json(text)
        model = models.get(request.model)
        if model is None or JobStatus(_text(status)) is not JobStatus.RUNNING:
            return
        index = model.workers.index(_text(worker))
        left = max(0, request.taken - int(step))
        load = load_of(job_id, request, left, started=float(started))
        model.running.setdefault(index, []).append(load)


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")
