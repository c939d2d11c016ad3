"""Writes the end of a flight: the job's record first, which is what counts, then RQ's books.

Every write may be repeated after a lost connection, and is refused once another worker has the job.
"""

from app.jobs.record import JobStatus, Problem
from app.jobs.repeats import repeat_key
from app.jobs.store import JobStore
from app.storage.base import ImageStorage
from worker import problems
from worker.flights import Ending, Flight
from worker.ledger import Ledger
from worker.results import discard, image_names

__all__ = ["Settling"]


class Settling:
    """Ends flights, each exactly once across all workers."""

    def __init__(self, store: JobStore, ledger: Ledger, storage: ImageStorage) -> None:
        self._store = store
        self._ledger = ledger
        self._storage = storage

    def settle(self, flight: Flight) -> bool:
        """Write the flight's ending.

        Returns:
            False when another execution has the job: what this one made is deleted.

        Raises:
            RedisError: call again later; nothing is lost by that.
        """
        match flight.ending:
            case Ending.SUCCEED:
                return self._succeed(flight)
            case Ending.CANCEL:
                return self._cancel(flight)
            case Ending.HAND_BACK:
                return self._hand_back(flight, spend_retry=False)
            case Ending.TRY_AGAIN if flight.held.job.retries_left:
                return self._hand_back(flight, spend_retry=True)
            case Ending.FAIL | Ending.TRY_AGAIN:
                problem = flight.problem or problems.worker_lost(flight.record.attempts)
                return self._fail(flight, problem)
        raise ValueError(f"job {flight.record.id!r} has no ending yet")

    def _succeed(self, flight: Flight) -> bool:
        if not self._finish(flight, JobStatus.SUCCEEDED):
            return self._superseded(flight)
        self._ledger.succeed(flight.held, len(flight.images))
        return True

    def _fail(self, flight: Flight, problem: Problem) -> bool:
        if not self._finish(flight, JobStatus.FAILED, problem):
            return self._superseded(flight)
        self._ledger.fail(flight.held, problem.detail)
        return True

    def _cancel(self, flight: Flight) -> bool:
        self._discard(flight)
        if not self._finish(flight, JobStatus.CANCELED):
            return self._superseded(flight)
        self._ledger.cancel(flight.held, flight.record.retention_s)
        return True

    def _hand_back(self, flight: Flight, *, spend_retry: bool) -> bool:
        self._discard(flight)
        self._store.requeue(flight.record.id, flight.token)
        # Whether or not that was ours to do: the ledger looks for itself.
        self._ledger.hand_back(flight.held, spend_retry=spend_retry)
        return True

    def _finish(self, flight: Flight, status: JobStatus, problem: Problem | None = None) -> bool:
        record, succeeded = flight.record, status is JobStatus.SUCCEEDED
        written = self._store.finish(
            record.id,
            flight.token,
            status,
            images=flight.images if succeeded else (),
            warnings=flight.order.warnings if flight.order is not None else (),
            error=problem,
            repeats=self._repeats(flight) if succeeded else None,
        )
        return written or self._written_before(flight, status)

    def _repeats(self, flight: Flight) -> str | None:
        """None where the batch size changed between two of its pictures."""
        record, prints = flight.record, {card.fingerprint for card in flight.cards.values()}
        if len(prints) != 1:
            return None
        return repeat_key(record.owner, record.request, prints.pop())

    def _written_before(self, flight: Flight, status: JobStatus) -> bool:
        """Whether it was this execution that ended the job, and only the answer got lost."""
        record = self._store.get(flight.record.id)
        return record is not None and record.status is status and record.execution == flight.token

    def _superseded(self, flight: Flight) -> bool:
        self._discard(flight)
        self._ledger.drop(flight.held)
        return False

    def _discard(self, flight: Flight) -> None:
        if flight.storing:
            discard(self._storage, image_names(flight.record, flight.token))
