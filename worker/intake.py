"""Takes jobs out of the queues, as many as the engine has room for."""

import time
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction

import structlog
from redis import Redis

from app.jobs.fleet_reader import read_fleet
from app.jobs.ids import made_at
from app.jobs.line import Line
from app.jobs.order import due_after_s
from app.jobs.record import JobRequest, JobStatus, Problem
from app.jobs.store import JobStore
from worker import problems
from worker.admission import Candidate, choose
from worker.flights import Ending, Flight
from worker.ledger import Ledger
from worker.memory import ran_out
from worker.prompts import MOST_ROWS
from worker.roster import Roster
from worker.waiting import Newer, Unfit, Waiting, waiting

__all__ = ["Intake"]

_log = structlog.get_logger()
_DEEPEST = 256  # entries of a queue looked at
_SURVEYED = 64  # so many at least, to see which models are asked for


class Intake:
    """Looks into the queues, chooses, and claims."""

    def __init__(
        self,
        redis: Redis,
        store: JobStore,
        ledger: Ledger,
        roster: Roster,
        *,
        worker: str,
        timeout_s: int,
        patience_s: float,
    ) -> None:
        """`timeout_s` is for jobs that came without one of their own.

        `patience_s`: see `Line`, and `due_after_s` of app/jobs/order.py.
        """
        self._redis = redis
        self._store = store
        self._ledger = ledger
        self._roster = roster
        self._worker = worker
        self._timeout_s = timeout_s
        self._patience_s = patience_s
        self._impatient = True
        self._passed_over = 0  # entries for other workers seen last time
        self._left = False  # whether some of them are of a later release

    def take(
        self,
        *,
        free: Fraction,
        hungry: Fraction,
        idle: bool,
        clock: Callable[[], float],
        survey: bool = False,
    ) -> Iterator[Flight]:
        """Claim what fits into the `free` share (see `choose`), or one job of any size if `idle`.

        Each is claimed when asked for, so that the one before is already being drawn. `clock`:
        monotonic seconds, from which deadlines are counted. With `survey` the look goes deeper
        than what can be taken, to see of which models jobs wait.
        """
        # Twice as deep each time where others' entries lie in front.
        slots = max((one.loop.slots for one in self._roster.residents.values()), default=1)
        limit = max(1, int(free * slots)) + 2 * self._passed_over
        heads = waiting(self._redis, min(_DEEPEST, max(limit, _SURVEYED if survey else 0)))
        ours = self._ours(heads.entries, whole=survey)
        by_id = {one.job.id: one for queue in ours for one in queue}
        line = Line(
            [[self._candidate(one) for one in queue] for queue in ours],
            lambda one: made_at(one.job_id),
            patience_s=self._patience_s,
            beyond=heads.beyond,
            impatient=self._impatient,
        )
        chosen = choose(line, now=time.time(), free=free, hungry=hungry, idle=idle)
        self._impatient = line.impatient
        self._prepare([by_id[one.job_id] for one in chosen])
        for one in chosen:
            flight = self._claim(by_id[one.job_id], clock)
            if flight is not None:
                yield flight

    def _prepare(self, chosen: Sequence[Waiting]) -> None:
        """Read the prompts of one model's jobs together."""
        requests: dict[str, list[JobRequest]] = {}
        for one in chosen:
            requests.setdefault(one.record.request.model, []).append(one.record.request)
        for model, asked in requests.items():
            resident = self._roster.open(model)
            if resident is not None:
                resident.prompts.prepare(asked)

    def _ours(
        self, queues: Sequence[Sequence[Waiting | Unfit | Newer]], *, whole: bool
    ) -> list[list[Waiting]]:
        """Entries for models that are loaded here; those that nobody can run are taken out."""
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
                elif self._roster.open(entry.record.request.model) is not None:
                    queue.append(entry)
                else:
                    strangers.append(entry)
        self._passed_over = len(strangers) + len(newer)
        seen = {one.record.request.model for one in (*strangers, *(o for q in ours for o in q))}
        self._roster.saw(seen, time.monotonic(), whole=whole)
        self._refuse_unserved(strangers)
        return ours

    def _refuse_unserved(self, strangers: Sequence[Waiting]) -> None:
        """Fail the jobs of models that neither this worker nor another can draw with."""
        unknown = [one for one in strangers if not self._roster.knows(one.record.request.model)]
        fleet = read_fleet(self._redis) if unknown else None
        for entry in unknown:
            model = entry.record.request.model
            if fleet is not None and not fleet.serves(model, but=self._worker):
                why = self._roster.why_not(model)
                problem = problems.model_not_loaded(model, why) if why else None
                self._fail_unserved(entry, problem or problems.model_not_served(model))

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

    def _fail_unserved(self, entry: Waiting, problem: Problem) -> None:
        held = self._ledger.claim(entry)
        if held is not None:
            self._store.finish(entry.record.id, None, JobStatus.FAILED, error=problem)
            self._ledger.fail(held, problem.detail)

    def _claim(self, entry: Waiting, clock: Callable[[], float]) -> Flight | None:
        resident = self._roster.open(entry.record.request.model)
        if resident is None:  # it was unloaded since the look
            return None
        held = self._ledger.claim(entry)
        if held is None:  # another worker was faster
            return None
        token = str(held.execution.id)
        record = self._store.start(entry.record.id, token, self._worker)
        if record is None:  # canceled while it waited, or over
            self._ledger.cancel(held, entry.record.retention_s)
            return None
        timeout_s = max(0, held.job.timeout or 0) or self._timeout_s
        now = clock()
        flight = Flight(held, record, resident, None, timeout_s, now + timeout_s)
        flight.times.claimed = time.time()
        resident.used_at = time.monotonic()
        try:
            due_s = now + due_after_s(self._patience_s, timeout_s)
            flight.order = resident.prompts.order(record, token, due_s)
        except ValueError as fault:
            flight.ending, flight.problem = Ending.FAIL, problems.invalid_job(str(fault))
        except Exception as fault:
            if not ran_out(fault):
                raise
            _log.warning("no memory to read a prompt", reason=repr(fault), **record.log_fields)
            problem = problems.not_drawn("there was no memory to read its prompt")
            flight.ending, flight.problem = Ending.TRY_AGAIN, problem
        flight.times.encoded = time.time()
        return flight

    def _candidate(self, entry: Waiting) -> Candidate:
        rows = min(MOST_ROWS, entry.record.request.rows)
        resident = self._roster.residents[entry.record.request.model]
        last = entry.job.retries_left == 0
        return Candidate(entry.job.id, resident.share(rows), last, made_at(entry.job.id))
