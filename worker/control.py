"""The jobs in this worker, in step with the engine's and the storing threads. No Redis here."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from queue import Empty
from typing import TypeVar

import structlog

from app.jobs.record import Problem, StoredImage
from app.storage.base import ImageStorage, StorageError
from worker import problems
from worker.flights import Ending, Flight
from worker.mail import (
    Cancel,
    EngineFailed,
    Fault,
    Finished,
    Letter,
    Mail,
    Snapshot,
    Started,
    StartFailed,
    Stored,
    StoreFailed,
)
from worker.previews import Preview, Previews
from worker.prompts import Order
from worker.resident import Resident
from worker.results import discard

__all__ = ["Control"]

T = TypeVar("T")

_log = structlog.get_logger()
_STORING_THREADS = 2
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 2.0  # between attempts to store


class Control:
    """Holds the flights and decides how each ends; writing that down is the runner's."""

    def __init__(
        self,
        storage: ImageStorage,
        previews: Previews,
        mail: Mail,
        storage_patience_s: float = 0.0,
    ) -> None:
        self.flights: dict[str, Flight] = {}  # by job id, in the order of their claims
        self.fault: BaseException | None = None  # what ended the engine
        self._storage = storage
        self._starting = ThreadPoolExecutor(1, "starting")  # an autoencoder takes seconds on CPU
        self._previews = previews
        self._mail = mail
        self._pool = ThreadPoolExecutor(_STORING_THREADS, "storing")
        self._storage_patience_s = storage_patience_s
        self._storage_away: set[str] = set()  # executions whose pictures wait for storage
        self._closing = threading.Event()

    @property
    def free(self) -> Fraction:
        """Share of the device for further rows: a row takes one slot of its engine's slots.

        None while a job has the device to itself, or storage fails.
        """
        if self._storage_away:  # what is drawn meanwhile would pile up in memory
            return Fraction(0)
        if any(flight.alone and flight.rows_in_engine for flight in self.flights.values()):
            return Fraction(0)
        return max(Fraction(0), 1 - self._taken)

    @property
    def hungry(self) -> Fraction:
        """Share of the device for rows that would be computed at once with those that are here."""
        at_once = [one.resident.share(one.resident.at_once) for one in self.flights.values()]
        return max(Fraction(0), max(at_once, default=Fraction(1)) - self._taken)

    @property
    def _taken(self) -> Fraction:
        taken = [f.resident.share(f.rows_in_engine) for f in self.flights.values()]
        return sum(taken, Fraction(0))

    @property
    def idle(self) -> bool:
        """Whether no engine has a row."""
        return not self.drawing

    @property
    def drawing(self) -> set[str]:
        """The models whose engines have rows."""
        return {one.resident.name for one in self.flights.values() if one.rows_in_engine}

    def flying(self, resident: Resident) -> bool:
        """Whether any job of this model is in the worker, stored pictures included."""
        return any(flight.resident is resident for flight in self.flights.values())

    def board(self, flight: Flight) -> None:
        """Take a claimed job in, and its rows into the engine."""
        job_id = flight.record.id
        if (before := self.flights.pop(job_id, None)) is not None:
            before.resident.loop.evict(before.token)  # it was lost, and is this worker's again
        self.flights[job_id] = flight
        if flight.order is None or flight.ending is not None:
            return
        if flight.record.inputs:
            self._starting.submit(self._start, flight, flight.order)
        else:
            self._admit(flight, flight.order)

    def _admit(self, flight: Flight, order: Order) -> None:
        flight.order = order
        flight.card = flight.resident.card
        flight.resident.loop.admit(order.rows)
        wanted = max(flight.previews, flight.record.previews)  # some may be, before there are rows
        flight.previews = 0
        self.preview(flight.record.id, wanted)

    def _start(self, flight: Flight, order: Order) -> None:
        """In the starting thread."""
        try:
            inputs = flight.resident.inputs
            ready = self._patiently(flight, lambda: inputs.start(flight.record, order))
        except BaseException as fault:  # the runner decides; a lost exception would hang the job
            self._mail.put(StartFailed(flight.token, fault))
        else:
            self._mail.put(Started(flight.token, ready))

    def begun_anew(self, resident: Resident) -> None:
        """All rows in its engine are drawn from their start again, with what its card names."""
        for flight in self.flights.values():
            if flight.resident is resident:
                flight.card = resident.card

    def preview(self, job_id: str, count: int) -> None:
        """Show `count` previews of each of a job's pictures, from its next step on."""
        flight = self.flights[job_id]
        if flight.previews != count:
            flight.previews = count
            flight.resident.loop.preview(flight.token, count)

    def evict(self, job_id: str) -> None:
        """Take a job's rows out of the engine before its next step; from any thread."""
        flight = self.flights.get(job_id)
        if flight is not None:
            flight.resident.loop.evict(flight.token)

    def end(self, flight: Flight, ending: Ending, problem: Problem | None = None) -> None:
        """Decide how a flight ends; the first decision stands."""
        if flight.ending is None:
            flight.ending, flight.problem = ending, problem
            flight.resident.loop.evict(flight.token)

    def read(self, letter: Letter) -> None:
        """Act on what another thread says."""
        match letter:
            case Cancel(job_id) if job_id in self.flights:
                self.end(self.flights[job_id], Ending.CANCEL)
            case Snapshot(job=token) if (flight := self._undecided(token)) is not None:
                self._glimpse(flight, letter)
            case Finished(job=token) if (flight := self._undecided(token)) is not None:
                self._row_finished(flight, letter)
            case Fault(job=token, reason=reason) if (flight := self._undecided(token)) is not None:
                _log.warning("row failed", reason=reason, **flight.record.log_fields)
                self.end(flight, Ending.FAIL, problems.not_drawn(reason))
            case Started(token, order) if (flight := self._undecided(token)) is not None:
                self._admit(flight, order)
            case StartFailed(token, fault) if (flight := self._undecided(token)) is not None:
                self._start_failed(flight, fault)
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
        return [
            (job_id, flight.token, flight.steps_done(flight.resident.loop.steps_of(flight.token)))
            for job_id, flight in self.flights.items()
            if flight.ending is None
        ]

    def close(self) -> None:
        """Wait for the storing threads; delete what they stored for nobody."""
        self._closing.set()
        self._starting.shutdown(wait=True, cancel_futures=True)
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._previews.close()
        while True:
            try:
                letter = self._mail.get_nowait()
            except Empty:
                return
            if isinstance(letter, Stored):
                discard(self._storage, (image.name for image in letter.images))

    def _undecided(self, token: str) -> Flight | None:
        for flight in self.flights.values():
            if flight.token == token and flight.ending is None:
                return flight
        return None

    def _glimpse(self, flight: Flight, row: Snapshot) -> None:
        """Show a picture on its way, once all of its layers are known as they are at that step."""
        if flight.order is None:
            return
        index, layer = divmod(row.index, flight.order.layers)
        known = flight.glimpses.setdefault((index, row.step), {})
        known[layer] = row.denoised
        if len(known) == flight.order.layers:
            del flight.glimpses[index, row.step]
            preview = Preview(index, row.step, [known[i] for i in range(len(known))])
            self._previews.show(flight.resident.model, flight.record, preview)

    def _row_finished(self, flight: Flight, row: Finished) -> None:
        if flight.storing:  # all of its rows are there
            return
        flight.rows[row.index] = row.picture
        flight.cards[row.index] = flight.card or flight.resident.card
        if flight.order is not None and len(flight.rows) == len(flight.order.rows):
            flight.storing = True
            flight.times.drawn = time.time()
            self._pool.submit(self._store, flight, flight.order)

    def _store(self, flight: Flight, order: Order) -> None:
        """In a storing thread; nothing changes what a flight has drawn any more."""
        token = flight.token
        try:
            images = tuple(self._patiently(flight, lambda: self._stored_images(flight, order)))
        except BaseException as fault:  # the runner decides; a lost exception would hang the job
            self._mail.put(StoreFailed(token, fault))
        else:
            self._mail.put(Stored(token, images))

    def _stored_images(self, flight: Flight, order: Order) -> list[StoredImage]:
        results = flight.resident.results
        return results.store(flight.record, flight.token, order, flight.rows, flight.cards)

    def _patiently(self, flight: Flight, work: Callable[[], T]) -> T:
        """Do what needs the storage, again and again while it fails, as long as it is wanted."""
        try:
            return self._until_it_works(flight, work)
        finally:
            self._storage_away.discard(flight.token)

    def _until_it_works(self, flight: Flight, work: Callable[[], T]) -> T:
        until, wait_s = time.monotonic() + self._storage_patience_s, _FIRST_WAIT_S
        while True:
            try:
                return work()
            except StorageError as fault:
                wanted = flight.ending is None and not self._closing.is_set()
                if not wanted or time.monotonic() + wait_s > until:
                    raise
                if not self._storage_away:
                    _log.warning("storage fails; trying again", reason=str(fault))
                self._storage_away.add(flight.token)
            self._closing.wait(wait_s)
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    def _start_failed(self, flight: Flight, fault: BaseException) -> None:
        _log.error("inputs not taken in", reason=repr(fault), **flight.record.log_fields)
        if isinstance(fault, ValueError):
            self.end(flight, Ending.FAIL, problems.invalid_job(str(fault)))
        elif isinstance(fault, StorageError):
            self.end(flight, Ending.TRY_AGAIN, problems.not_read())
        else:
            problem = problems.not_drawn("the picture to start from could not be encoded")
            self.end(flight, Ending.TRY_AGAIN, problem)

    def _stored(self, letter: Stored) -> None:
        flight = self._undecided(letter.execution)
        if flight is None:  # canceled or taken over meanwhile
            discard(self._storage, (image.name for image in letter.images))
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
