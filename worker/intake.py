"""Takes jobs out of the queues, as many as the engine has room for."""

import time
from collections.abc import Callable, Iterator, Sequence

import structlog
from redis import Redis

from app.jobs.ids import made_at
from app.jobs.line import Line
from app.jobs.record import JobStatus
from app.jobs.store import JobStore
from worker import problems
from worker.admission import Candidate, choose
from worker.card import live_models
from worker.flights import Ending, Flight
from worker.ledger import Ledger
from worker.prompts import MOST_PICTURES, Prompts
from worker.waiting import Newer, Unfit, Waiting, waiting

__all__ = ["Intake"]

_log = structlog.get_logger()
_DEEPEST = 256  # entries of a queue looked at


class Intake:
    """Looks into the queues, chooses, and claims."""

    def __init__(
        self,
        redis: Redis,
        store: JobStore,
        ledger: Ledger,
        prompts: Prompts,
        *,
        worker: str,
        model: str,
        timeout_s: int,
        patience_s: float,
    ) -> None:
        """`timeout_s` is for jobs that came without one of their own; `patience_s`: see `Line`."""
        self._redis = redis
        self._store = store
        self._ledger = ledger
        self._prompts = prompts
        self._worker = worker
        self._model = model
        self._timeout_s = timeout_s
        self._patience_s = patience_s
        self._impatient = True
        self._passed_over = 0  # entries for other workers seen last time
        self._left = False  # whether some of them are of a later release

    def take(self, *, free: int, idle: bool, clock: Callable[[], float]) -> Iterator[Flight]:
        """Claim what fits into `free` slots, or one job of any size if the engine is `idle`.

        Each is claimed when asked for, so that the one before is already being drawn. `clock`:
        monotonic seconds, from which deadlines are counted.
        """
        # Twice as deep each time where others' entries lie in front.
        limit = min(_DEEPEST, max(1, free) + 2 * self._passed_over)
        heads = waiting(self._redis, limit)
        ours = self._ours(heads.entries)
        by_id = {one.job.id: one for queue in ours for one in queue}
        line = Line(
            [[_candidate(one) for one in queue] for queue in ours],
            lambda one: made_at(one.job_id),
            patience_s=self._patience_s,
            beyond=heads.beyond,
            impatient=self._impatient,
        )
        chosen = choose(line, now=time.time(), free=free, idle=idle)
        self._impatient = line.impatient
        for one in chosen:
            flight = self._claim(by_id[one.job_id], clock)
            if flight is not None:
                yield flight

    def _ours(self, queues: Sequence[Sequence[Waiting | Unfit | Newer]]) -> list[list[Waiting]]:
        """Entries for this worker's model; those that nobody can run are taken out."""
        ours: list[list[Waiting]] = [[] for _ in queues]
        strangers: list[Waiting] = []
        newer = [entry for queue in queues for entry in queue if isinstance(entry, Newer)]
        self._leave(newer)
        for queue, entries in zip(ours, queues, strict=True):
            for entry in entries:
                if isinstance(entry, Newer):
                    continue
                if isinstance(entry, Unfit):
                    self._refuse(entry)
                elif entry.record.request.model == self._model:
                    queue.append(entry)
                else:
                    strangers.append(entry)
        self._passed_over = len(strangers) + len(newer)
        live = live_models(self._redis) if strangers else set()
        for entry in strangers:
            if entry.record.request.model not in live:
                self._fail_unserved(entry)
        return ours

    def _leave(self, newer: list[Newer]) -> None:
        """Say once that there are jobs for workers of a later release."""
        if newer and not self._left:
            _log.warning("jobs of a later release left", job=newer[0].job_id, why=newer[0].reason)
        self._left = bool(newer)

    def _refuse(self, unfit: Unfit) -> None:
        if not self._ledger.refuse(unfit):
            return
        _log.warning("queue entry refused", job_id=unfit.job_id, reason=unfit.reason)
        if unfit.record is not None:
            error = problems.entry_invalid()
            self._store.finish(unfit.record.id, None, JobStatus.FAILED, error=error)

    def _fail_unserved(self, entry: Waiting) -> None:
        problem = problems.model_not_served(entry.record.request.model)
        held = self._ledger.claim(entry)
        if held is not None:
            self._store.finish(entry.record.id, None, JobStatus.FAILED, error=problem)
            self._ledger.fail(held, problem.detail)

    def _claim(self, entry: Waiting, clock: Callable[[], float]) -> Flight | None:
        held = self._ledger.claim(entry)
        if held is None:  # another worker was faster
            return None
        token = str(held.execution.id)
        record = self._store.start(entry.record.id, token, self._worker)
        if record is None:  # canceled while it waited, or over
            self._ledger.cancel(held, entry.record.retention_s)
            return None
        timeout_s = max(0, held.job.timeout or 0) or self._timeout_s
        flight = Flight(held, record, None, timeout_s, clock() + timeout_s)
        flight.times.claimed = time.time()
        try:
            flight.order = self._prompts.order(record, token)
        except ValueError as fault:
            flight.ending, flight.problem = Ending.FAIL, problems.invalid_job(str(fault))
        flight.times.encoded = time.time()
        return flight


def _candidate(entry: Waiting) -> Candidate:
    rows = min(MOST_PICTURES, entry.record.request.rows)
    return Candidate(entry.job.id, rows, alone=entry.job.retries_left == 0)
