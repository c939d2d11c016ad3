"""What a worker does, as a trace that https://ui.perfetto.dev and chrome://tracing open.

The form is Chrome's Trace Event Format, a JSON array written as it goes: a worker that is killed
leaves a file without its last bracket, which both read as well.
"""

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import structlog

from worker.flights import Flight
from worker.reports import StepReport

__all__ = ["NoProfile", "Profile"]

_log = structlog.get_logger()
_LEAST_S = 0.0001  # duties that had nothing to do are left out


class NoProfile:
    """Takes note of nothing."""

    @contextmanager
    def duty(self, name: str) -> Iterator[None]:
        """Something the main thread does, mostly with Redis."""
        yield

    def stepped(self, report: StepReport, seconds: float) -> None:
        """A step of the engine, which has just ended."""

    def left(self, flight: Flight) -> None:
        """A job is over: its phases are known."""

    def close(self) -> None:
        """End the file."""


class Profile(NoProfile):
    """Writes a trace; its methods may be called from any thread."""

    def __init__(self, file: Path) -> None:
        """Begin the file.

        Raises:
            OSError: it cannot be written.
        """
        self._file = file.open("w", encoding="utf-8")
        self._lock = threading.Lock()
        self._append("[\n")
        self._write({"ph": "M", "name": "process_name", "args": {"name": "avocat worker"}})
        for track, name in enumerate(("engine", "duties")):
            self._write({"ph": "M", "name": "thread_name", "tid": track, "args": {"name": name}})

    @contextmanager
    def duty(self, name: str) -> Iterator[None]:
        """Time it."""
        began = time.time()
        try:
            yield
        finally:
            if (seconds := time.time() - began) >= _LEAST_S:
                self._span(1, name, began, seconds, {})

    def stepped(self, report: StepReport, seconds: float) -> None:
        """One span of the engine, with what happened in it."""
        told = {
            "rows": report.advanced,
            "calls": report.calls,
            "finished": len(report.finished),
            "faults": len(report.faults),
        }
        self._span(0, "step", time.time() - seconds, seconds, told)

    def left(self, flight: Flight) -> None:
        """A track of its own for the job: encode, denoise, store."""
        request = flight.record.request
        about = {"steps": request.steps, "rows": request.rows, "sampler": request.sampler}
        for name, span in flight.times.phases().items():
            for ph, at in zip("be", span, strict=True):
                job = {"ph": ph, "cat": "job", "id": flight.record.id, "name": name}
                self._write(job | {"ts": round(1e6 * at), "args": about})

    def close(self) -> None:
        """End the array."""
        # An event without a comma after it.
        end = {"ph": "M", "name": "process_labels", "pid": os.getpid(), "args": {}}
        self._append(json.dumps(end | {"args": {"labels": "stopped"}}) + "\n]\n", last=True)

    def _span(self, track: int, name: str, began: float, seconds: float, args: Any) -> None:
        at = {"ts": round(1e6 * began), "dur": max(1, round(1e6 * seconds)), "tid": track}
        self._write({"ph": "X", "name": name, "args": args} | at)

    def _write(self, event: dict[str, Any]) -> None:
        self._append(json.dumps({"pid": os.getpid(), "tid": 0} | event) + ",\n")

    def _append(self, text: str, *, last: bool = False) -> None:
        """A disk that is full ends the trace, and nothing else."""
        with self._lock:
            if self._file.closed:
                return
            try:
                self._file.write(text)
                if last:
                    self._file.close()
            except OSError as fault:
                _log.warning("trace ends here", file=self._file.name, reason=fault.strerror)
                with suppress(OSError):
                    self._file.close()
