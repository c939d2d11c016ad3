"""The jobs in this worker, in step with the engine's and the storing threads. No Redis here."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from queue import Empty

import structlog

from app.jobs.models import ModelCard
from app.jobs.record import Problem, StoredImage
from app.storage.base import StorageError
from models.model import Model
from worker import problems
from worker.flights import Ending, Flight
from worker.loop import EngineLoop
from worker.mail import (
    Cancel,
    EngineFailed,
    Fault,
    Finished,
    Letter,
    Mail,
    Snapshot,
    Stored,
    StoreFailed,
)
from worker.previews import Previews
from worker.prompts import Order
from worker.results import Results

__all__ = ["Control"]

_log = structlog.get_logger()
_STORING_THREADS = 2
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 2.0  # between attempts to store


class Control:
    """Holds the flights and decides how each ends; writing that down is the runner's."""

    def __init__(
        self,
        loop: EngineLoop,
        results: Results,
        previews: Previews,
        mail: Mail,
        storage_patience_s: float = 0.0,
    ) -> None:
        self.flights: dict[str, Flight] = {}  # by job id, in the order of their claims
        self.fault: BaseException | None = None  # what ended the engine
        self._loop = loop
        self._results = results
        self._previews = previews
        self._mail = mail
        self._pool = ThreadPoolExecutor(_STORING_THREADS, "storing")
        self._storage_patience_s = storage_patience_s
        self._storage_away: set[str] = set()  # executions whose pictures wait for storage
        self._closing = threading.Event()

    @property
    def free(self) -> int:
        """Slots for further rows; none while a job has the engine to itself, or storage fails."""
        if self._storage_away:  # what is drawn meanwhile would pile up in memory
            return 0
        if any(flight.alone and flight.rows_in_engine for flight in self.flights.values()):
            return 0
        return max(0, self._loop.slots - sum(f.rows_in_engine for f in self.flights.values()))

    @property
    def idle(self) -> bool:
        """Whether the engine has no row."""
        return not any(flight.rows_in_engine for flight in self.flights.values())

    def board(self, flight: Flight) -> None:
        """Take a claimed job in, and its rows into the engine."""
        job_id = flight.record.id
        if (before := self.flights.pop(job_id, None)) is not None:
            self._loop.evict(before.token)  # this worker had lost it, and now got it again
        self.flights[job_id] = flight
        flight.card = self._results.card
        if flight.order is not None and flight.ending is None:
            self._loop.admit(flight.order.rows)
            self.preview(job_id, flight.record.previews)

    def begun_anew(self, card: ModelCard) -> None:
        """All rows in the engine are drawn from their start again, with what `card` names."""
        self._results.card = card
        for flight in self.flights.values():
            flight.card = card

    def switch(self, model: Model, card: ModelCard) -> None:
        """Draw the jobs that board from now on with `model`."""
        self._results.card = card
        self._loop.switch(model)

    def preview(self, job_id: str, count: int) -> None:
        """Show `count` previews of each of a job's pictures, from its next step on."""
        flight = self.flights[job_id]
        if flight.previews != count:
            flight.previews = count
            self._loop.preview(flight.token, count)

    def evict(self, job_id: str) -> None:
        """Take a job's rows out of the engine before its next step; from any thread."""
        flight = self.flights.get(job_id)
        if flight is not None:
            self._loop.evict(flight.token)

    def end(self, flight: Flight, ending: Ending, problem: Problem | None = None) -> None:
        """Decide how a flight ends; the first decision stands."""
        if flight.ending is None:
            flight.ending, flight.problem = ending, problem
            self._loop.evict(flight.token)

    def read(self, letter: Letter) -> None:
        """Act on what another thread says."""
        match letter:
            case Cancel(job_id) if job_id in self.flights:
                self.end(self.flights[job_id], Ending.CANCEL)
            case Snapshot(job=token) if (flight := self._undecided(token)) is not None:
                self._previews.show(flight.record, letter)
            case Finished(job=token) if (flight := self._undecided(token)) is not None:
                self._row_finished(flight, letter)
            case Fault(job=token, reason=reason) if (flight := self._undecided(token)) is not None:
                _log.warning("row failed", reason=reason, **flight.record.log_fields)
                self.end(flight, Ending.FAIL, problems.not_drawn(reason))
            case Stored():
                self._stored(letter)
            case StoreFailed(token, fault) if (flight := self._undecided(token)) is not None:
                self._store_failed(flight, fault)
            case EngineFailed(fault):
                self.fault = fault
                self.end_all(Ending.TRY_AGAIN, storing=False)

    def end_all(self, ending: Ending, *, storing: bool) -> None:
        """End every flight that has no ending yet; those being stored only if `storing`."""
        for flight in self.flights.values():
            if storing or not flight.storing:
                self.end(flight, ending)

    def check_deadlines(self, now: float) -> None:
        """Stop what runs for too long; what is being stored already may go on."""
        for flight in self.flights.values():
            if now >= flight.deadline and not flight.storing:
                self.end(flight, Ending.FAIL, problems.timed_out(flight.timeout_s))

    def steps(self) -> list[tuple[str, str, int]]:
        """(job id, execution, steps done) of every flight that goes on."""
        in_engine = self._loop.steps_done
        return [
            (job_id, flight.token, flight.steps_done(in_engine.get(flight.token, 0)))
            for job_id, flight in self.flights.items()
            if flight.ending is None
        ]

    def close(self) -> None:
        """Wait for the storing threads; delete what they stored for nobody."""
        self._closing.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._previews.close()
        while True:
            try:
                letter = self._mail.get_nowait()
            except Empty:
                return
            if isinstance(letter, Stored):
                self._results.discard(image.name for image in letter.images)

    def _undecided(self, token: str) -> Flight | None:
        for flight in self.flights.values():
            if flight.token == token and flight.ending is None:
                return flight
        return None

    def _row_finished(self, flight: Flight, row: Finished) -> None:
        flight.rows[row.index] = row.picture
        flight.cards[row.index] = flight.card or self._results.card
        if flight.order is not None and len(flight.rows) == len(flight.order.rows):
            flight.storing = True
            flight.times.drawn = time.time()
            self._pool.submit(self._store, flight, flight.order)

    def _store(self, flight: Flight, order: Order) -> None:
        """In a storing thread; nothing changes what a flight has drawn any more."""
        token = flight.token
        try:
            images = tuple(self._store_patiently(flight, order))
        except BaseException as fault:  # the runner decides; a lost exception would hang the job
            self._mail.put(StoreFailed(token, fault))
        else:
            self._mail.put(Stored(token, images))
        finally:
            self._storage_away.discard(token)

    def _store_patiently(self, flight: Flight, order: Order) -> list[StoredImage]:
        """Store, again and again while storage fails, as long as anybody wants it."""
        until, wait_s = time.monotonic() + self._storage_patience_s, _FIRST_WAIT_S
        while True:
            try:
                return self._results.store(
                    flight.record, flight.token, order, flight.rows, flight.cards
                )
            except StorageError as fault:
                wanted = flight.ending is None and not self._closing.is_set()
                if not wanted or time.monotonic() + wait_s > until:
                    raise
                if not self._storage_away:
                    _log.warning("storage fails; trying again", reason=str(fault))
                self._storage_away.add(flight.token)
            self._closing.wait(wait_s)
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    def _stored(self, letter: Stored) -> None:
        flight = self._undecided(letter.execution)
        if flight is None:  # canceled or taken over meanwhile
            self._results.discard(image.name for image in letter.images)
            return
        flight.images = letter.images
        flight.times.stored = time.time()
        self.end(flight, Ending.SUCCEED)

    def _store_failed(self, flight: Flight, fault: BaseException) -> None:
        _log.error("images not stored", reason=repr(fault), **flight.record.log_fields)
        if isinstance(fault, StorageError):
            self.end(flight, Ending.TRY_AGAIN, problems.not_stored())
        else:  # a request that cannot be encoded would not be better next time; a device might
            ending = Ending.FAIL if isinstance(fault, ValueError) else Ending.TRY_AGAIN
            self.end(flight, ending, problems.not_drawn("it could not be encoded"))
