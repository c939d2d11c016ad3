"""The RQ worker: many jobs in flight, one engine.

The main thread keeps the books in Redis; the engine has its own thread, so that neither waits for
the other. All that happens comes in by one mailbox and changes flights in memory; what follows is
written to Redis at the next sync, and again if Redis was away.
"""

import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any

import structlog
from redis import Redis
from redis.exceptions import RedisError, ResponseError

from app.jobs.outage import Outage
from app.jobs.store import JobStore
from app.jobs.tracing import Tracing
from app.settings import Settings
from app.storage.base import ImageStorage
from worker.admission import SPARE_S
from worker.control import Control
from worker.flights import Ending
from worker.intake import Intake
from worker.ledger import Ledger
from worker.listener import Listener
from worker.mail import (
    Built,
    Letter,
    LoadModel,
    Mail,
    ModelLoaded,
    ModelNotLoaded,
    Shrunk,
    StopRequested,
    UnloadModel,
)
from worker.metrics import Metrics
from worker.previews import Previews
from worker.profile import NoProfile
from worker.progress import Progress
from worker.recovery import Recovery
from worker.registration import RegisteredWorker
from worker.reports import StepReport
from worker.resident import Place, Prepared, Resident
from worker.roster import Roster, Workshop
from worker.settling import Settling
from worker.spans import trace_flight
from worker.turns import Turns

__all__ = ["Runner"]

_log = structlog.get_logger()
_LOOK_S = 1.0  # a wake-up may have been missed
_RECOVER_S = 1.0
_EXPIRE_S = 1.0
_TIDY_S = 10.0
_SURVEY_S = 1.0  # of which models jobs wait
_MOVE_S = 0.1  # models in and out
_FOLDER_S = 2.0  # looks into the folder of models
_BUSY_WAIT_S = 0.1
_IDLE_WAIT_S = 0.5
_SAME_SIGNAL_S = 0.2  # a terminal and a supervisor may both pass one Ctrl-C on
_STORING_GRACE_S = 5.0  # beyond the drain's, for what is drawn already
_GIVE_UP_S = 10.0  # beyond the drain's grace; leases run out by themselves then


class _Every:
    """A duty that is due again some time after it was last done."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._done_at = float("-inf")

    def due(self, now: float, interval_s: float | None = None) -> bool:
        return now - self._done_at >= (interval_s or self._interval_s)

    def done(self, now: float) -> None:
        self._done_at = now


class Runner(RegisteredWorker):
    """One RQ worker, its models, an engine for each that is loaded."""

    def __init__(
        self,
        redis: Redis,
        first: Prepared,
        storage: ImageStorage,
        settings: Settings,
        name: str,
        workshop: Workshop | None = None,
    ) -> None:
        """Nothing runs and nothing is registered before `work`.

        `first`: the model it has from the start; others come from the `workshop`, if there is one.
        """
        self.profile = NoProfile()
        super().__init__(redis, name=name, model=first.card.name, lease_s=settings.lease_s)
        self._mail: Mail = SimpleQueue()
        place = Place(redis, self.key, storage, self._mail, Turns(), self._stepped)
        home = Resident(first, place)
        self.metrics = Metrics(home.slots, home.device, first.streams.count * first.streams.threads)
        self._roster = Roster(
            *(redis, name, home, self._mail, lambda prepared: Resident(prepared, place), workshop),
            budget_bytes=settings.model_memory_mb * 10**6 or None,
            patience_s=settings.model_patience_s,
            lease_s=settings.lease_s,
        )
        store = JobStore(redis, self.metrics.ended)
        ledger = self._ledger = Ledger(redis, name, settings.lease_s)
        self._control = Control(
            *(storage, Previews(redis), self._mail), storage_patience_s=settings.storage_patience_s
        )
        self._intake = Intake(
            *(redis, store, ledger, self._roster),
            worker=name,
            timeout_s=settings.job_timeout_s,
            patience_s=settings.patience_s,
        )
        self._settling = Settling(store, ledger, storage)
        self._recovery = Recovery(redis, store, ledger, storage)
        self._progress = Progress(store)
        self._listener = Listener(redis, name, self._mail, self._control.evict)
        self._tracing = Tracing(settings.otlp_endpoint, "avocat-worker")
        self._drain_grace_s = settings.drain_grace_s
        self._outage = Outage()
        self._look_now, self._announced = True, False
        self._looks, self._recoveries = _Every(_LOOK_S), _Every(_RECOVER_S)
        self._beats, self._tidying = _Every(settings.lease_s / 5), _Every(_TIDY_S)
        self._surveys, self._folder = _Every(_SURVEY_S), _Every(_FOLDER_S)
        self._moves, self._expiries = _Every(_MOVE_S), _Every(_EXPIRE_S)
        self._stop_asked_at: float | None = None
        self._stop_at = float("inf")
        self._served = 0

    def _stepped(self, model: str, report: StepReport, seconds: float) -> None:
        """In that model's engine's thread."""
        self.metrics.stepped(report, seconds, model)
        self.profile.stepped(report, seconds)

    @property
    def fault(self) -> BaseException | None:
        """What ended the engine, if something did: the process should end in error."""
        return self._control.fault

    @property
    def building(self) -> bool:
        """Whether a runtime is still being built."""
        return any(resident.building for resident in self._roster.residents.values())

    def stop(self) -> None:
        """Ask the worker to drain; asked again, to hand everything back at once."""
        self._mail.put(StopRequested())

    def _install_signal_handlers(self) -> None:
        """Take SIGINT and SIGTERM; outside a main thread there is only `stop`."""
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                signal.signal(signum, self.request_stop)

    def request_stop(self, signum: Any, frame: Any) -> None:
        """The same, as a signal handler: nothing else may happen in one."""
        self._mail.put(StopRequested())

    def work(self, burst: bool = False, *_: Any, **__: Any) -> bool:
        """Serve until asked to stop, or, with `burst`, until no work is left.

        Returns:
            Whether any job was taken.

        Raises:
            NameTaken: a live worker has this name.
            RedisError: Redis was away at the start.
        """
        self._install_signal_handlers()
        self.register(self._roster.standing())
        self._announce()
        self._listener.start()
        for resident in self._roster.residents.values():
            resident.loras.start()
            resident.start()
        _log.info("worker ready", name=self.name, model=self.model)
        try:
            self._serve(burst)
        finally:
            self._leave()
        return self._served > 0

    def _serve(self, burst: bool) -> None:
        while True:
            self._read_mail()
            now = time.monotonic()
            self._control.check_deadlines(now)
            self._drain(now)
            if not self._outage.wait_s(now):
                self._sync(now)
            left = self._control.flights
            over = self._stop_asked_at is not None or (burst and not self._roster.expects_work)
            if over and not left:
                return
            if now >= self._stop_at + _GIVE_UP_S:
                _log.error("stopped without handing all jobs back", jobs=list(left))
                return

    def _read_mail(self) -> None:
        """Wait a little for a letter, then read all there are."""
        busy = bool(self._control.flights)
        wait_s = _BUSY_WAIT_S if busy else _IDLE_WAIT_S
        if self._look_now and not self._outage.wait_s(time.monotonic()):
            wait_s = 0.0
        with suppress(Empty):
            letter = self._mail.get(timeout=wait_s)
            while True:
                self._read(letter)
                letter = self._mail.get_nowait()

    def _read(self, letter: Letter) -> None:
        self._look_now = True  # work arrived, or a slot may be free
        match letter:
            case StopRequested():
                self._stop_requested_now(time.monotonic())
            case Shrunk():
                self._shrunk(letter)
            case LoadModel(model):
                self._roster.ask_load(model)
            case UnloadModel(model):
                self._roster.ask_unload(model)
            case Built():
                self._switch(letter)
            case ModelLoaded(resident):
                self._roster.loaded(resident)
                self._announced = False
            case ModelNotLoaded():
                self._roster.not_loaded(letter)
        self._control.read(letter)
        if self._control.fault is not None and self._stop_asked_at is None:
            _log.error("engine failed; all jobs go back", reason=repr(self._control.fault))
            self._stop_asked_at = self._stop_at = time.monotonic()

    def _stop_requested_now(self, now: float) -> None:
        if self._stop_asked_at is None:
            self._stop_asked_at, self._stop_at = now, now + self._drain_grace_s
            self._roster.close()
            _log.info("draining", jobs=len(self._control.flights), grace_s=self._drain_grace_s)
        elif now - self._stop_asked_at > _SAME_SIGNAL_S:
            self._stop_at = min(self._stop_at, now)

    def _drain(self, now: float) -> None:
        if now >= self._stop_at:
            late = now >= self._stop_at + _STORING_GRACE_S
            self._control.end_all(Ending.HAND_BACK, storing=late)

    def _sync(self, now: float) -> None:
        """Everything that is due with Redis; the lease first."""
        duties: list[Callable[[float], None]] = [
            self._beat_if_due, self._take, self._settle, self._tell, self._house, self._care,
        ]  # fmt: skip
        sound = True
        for duty in duties:
            try:
                with self.profile.duty(duty.__name__.strip("_")):
                    duty(now)
            except ResponseError as fault:  # this duty is refused; the others may go on
                self._outage.failed(fault, now)
                sound = False
            except RedisError as fault:
                self._outage.failed(fault, now)
                return
        if sound:
            self._outage.over()

    def _beat_if_due(self, now: float) -> None:
        held = [flight.held for flight in self._control.flights.values()]
        if self._beats.due(now):
            if not self.beat(self._ledger, held, self._roster.standing()):
                self._announced = False  # Redis came back without its data
                self._roster.announcements.was_forgotten()
            self._beats.done(now)
        else:
            self.show_state(held)
        if not self._announced or self._roster.has_news:
            self._announce()

    def _announce(self) -> None:
        self._roster.announce()
        self._announced = True

    def _shrunk(self, letter: Shrunk) -> None:
        """What is drawn from now on may have another fingerprint."""
        _log.warning("memory ran out: fewer slots", slots=letter.slots, size=letter.micro_batch)
        resident = self._roster.residents.get(letter.model)
        if resident is not None:  # else it was unloaded meanwhile
            self.metrics.resized(letter.slots)
            if resident.shrink(letter):
                self._control.begun_anew(resident)
                self._announced = False

    def _switch(self, letter: Built) -> None:
        """A model has a faster runtime, unless it was unloaded or runs in smaller batches now."""
        resident = self._roster.residents.get(letter.card.name)
        if resident is not None and resident.switch(letter):
            self._announced = False
            _log.info("runtime switched", model=resident.name, runtime=letter.card.runtime)

    def _take(self, now: float) -> None:
        control = self._control
        due = self._look_now or self._looks.due(now, SPARE_S if control.hungry <= 0 else _LOOK_S)
        survey = self._surveys.due(now) and self._roster.could_load_more
        self._look_now = False  # else the loop would not wait
        if self._stop_asked_at is not None or not (survey or (due and control.free > 0)):
            return
        self._looks.done(now)
        if survey:
            self._surveys.done(now)
        for flight in self._intake.take(
            free=control.free, hungry=control.hungry, idle=control.idle,
            clock=time.monotonic, survey=survey,
        ):  # fmt: skip
            control.board(flight)
            self.metrics.taken(flight)
            self._served += 1
            self._look_now = True  # there may be more

    def _settle(self, now: float) -> None:
        refused: ResponseError | None = None
        # What is handed back goes to the front of its queue, so the oldest comes last.
        for job_id, flight in reversed(list(self._control.flights.items())):
            if flight.ending is None:
                continue
            try:
                settled = self._settling.settle(flight)
            except ResponseError as fault:
                refused = fault
                continue
            del self._control.flights[job_id]
            flight.resident.used_at = now
            ending = flight.ending.name.lower() if settled else "superseded"
            trace_flight(self._tracing, flight, ending)
            self.profile.left(flight)
            if settled and flight.ending is Ending.SUCCEED:
                self.metrics.succeeded(flight)
            _log.info("job left", ending=ending, **flight.record.log_fields)
        if refused is not None:
            raise refused

    def _tell(self, now: float) -> None:
        answer = self._progress.tell(self._control.steps(), now)
        for job_id in answer.evict:
            # Canceled, or another worker has it: the fence of that ending tells which.
            self._control.end(self._control.flights[job_id], Ending.CANCEL)
        for job_id, count in answer.previews.items():
            self._control.preview(job_id, count)
        for resident in self._roster.residents.values():
            resident.speed.tell(resident.loop.rounds, busy=self._control.flying(resident), now=now)

    def _house(self, now: float) -> None:
        """Models come and go, and others are told."""
        if self._stop_asked_at is not None or not self._moves.due(now):
            return
        if self._folder.due(now):
            self._announced = not self._roster.look() and self._announced
            self._folder.done(now)
        if self._roster.advance(now, self._control.flying):
            self._announced = False
        self.show_models(self._roster.standing())
        self._moves.done(now)

    def _care(self, now: float) -> None:
        self.metrics.look(now, self._control.drawing)
        if self._recoveries.due(now):
            own = {flight.token for flight in self._control.flights.values()}
            self.metrics.lost(self._recovery.recover(own))
            self._recoveries.done(now)
        if self._tidying.due(now):
            self._recovery.agree_on_failures()
            self._recovery.tidy_registries()
            self._tidying.done(now)
        if self._expiries.due(now):
            self._recovery.expire_images()
            self._expiries.done(now)

    def _leave(self) -> None:
        """Stop the threads, give back what is left, and let RQ forget this worker."""
        for resident in self._roster.residents.values():
            resident.close()
        self._listener.stop()
        self._control.close()
        with suppress(RedisError):
            self._control.end_all(Ending.TRY_AGAIN, storing=True)
            self._settle(time.monotonic())
            self.register_death()  # type: ignore[no-untyped-call]
        self._tracing.close()
        for resident in self._roster.residents.values():
            resident.wait_for_runtime(_GIVE_UP_S)
        _log.info("worker stopped", name=self.name)
