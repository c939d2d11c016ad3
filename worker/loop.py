"""The engine's own thread: steps while there are rows, obeys between any two steps."""

import threading
import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue

import torch

from models.model import Model
from worker.engine import Engine
from worker.mail import EngineFailed, Mail, Shrunk
from worker.reports import Fault, StepReport
from worker.rows import RowSpec
from worker.turns import Turns

__all__ = ["EngineLoop"]

Stepped = Callable[[StepReport, float], None]


class EngineLoop:
    """Runs an engine in a thread; commands come in by methods, rows go out by mail."""

    def __init__(
        self,
        engine: Engine,
        mail: Mail,
        threads: int,
        stepped: Stepped = lambda *_: None,
        *,
        model: str = "",
        turns: Turns | None = None,
    ) -> None:
        """Nothing runs before `start`.

        Args:
            engine: nobody else may use it from then on.
            mail: where rows go.
            threads: torch's, on CPU.
            stepped: told of each step and its seconds, in the engine's thread.
            model: what the engine draws with, where there are several.
            turns: held during each step, by all engines of the device.
        """
        self.slots = engine.slots
        self.steps_done: dict[str, int] = {}  # by job; replaced whole after each step
        self.rounds = 0  # of calls of the network, since the start
        self._engine = engine
        self._mail = mail
        self._threads = threads
        self._stepped = stepped
        self._model = model
        self._turns = turns or Turns()
        self._commands: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def admit(self, rows: Sequence[RowSpec]) -> None:
        """Take the rows of one job in before the next step."""
        self._commands.put(lambda: self._admit(rows))

    def preview(self, job: str, count: int) -> None:
        """From the next step on send `count` snapshots of each row of a job by mail."""
        self._commands.put(lambda: self._engine.preview(job, count))

    def switch(self, model: Model) -> None:
        """Draw what is admitted from now on with `model`."""
        self._commands.put(lambda: self._engine.switch(model))

    def evict(self, job: str) -> None:
        """Drop the rows of a job before the next step; may be called from any thread."""
        self._commands.put(lambda: self._engine.evict(job))

    def steps_of(self, job: str) -> int:
        """Steps done by the rows of a job that are in the engine."""
        return self.steps_done.get(job, 0)

    def stop(self, timeout_s: float) -> None:
        """End the thread after the step it is in, and wait for that."""
        self._commands.put(self._stop)
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            torch.set_num_threads(self._threads)
            while self._obey():
                self._step()
        except BaseException as fault:  # whatever it is, the runner must give all jobs back
            self._mail.put(EngineFailed(fault))

    def _obey(self) -> bool:
        """Carry out what was asked; without rows, wait for it. False when told to stop."""
        while not self._stopping:
            try:
                command = self._commands.get(block=self._engine.idle)
            except Empty:
                return True
            command()
        return False

    def _step(self) -> None:
        with self._turns:
            began = time.perf_counter()
            report = self._engine.step()
            took_s = time.perf_counter() - began
        self._stepped(report, took_s)
        self.rounds += bool(report.calls)
        self.steps_done = self._engine.steps_done()
        for snapshot in report.snapshots:
            self._mail.put(snapshot)
        for fault in report.faults:
            self._mail.put(fault)
        for finished in report.finished:
            self._mail.put(finished)
        if report.shrunk:  # after what was drawn before
            self.slots = self._engine.slots
            engine = self._engine
            shrunk = Shrunk(engine.slots, engine.micro_batch, engine.at_once, self._model)
            self._mail.put(shrunk)

    def _admit(self, rows: Sequence[RowSpec]) -> None:
        try:
            self._engine.admit(rows)
        except ValueError as fault:
            self._mail.put(Fault(rows[0].job, rows[0].index, str(fault)))

    def _stop(self) -> None:
        self._stopping = True
