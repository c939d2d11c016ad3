"""What a worker tells Prometheus: on a port of its own, or through the API beside it.

With `PROMETHEUS_MULTIPROC_DIR` set, as by `avocat serve`, all is written into that folder, too, and
the API that shares it answers for the worker.
"""

import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    start_http_server,
)

from app.jobs.record import JobStatus, Problem
from worker.device_use import DeviceUse
from worker.flights import Flight
from worker.reports import StepReport

__all__ = ["Metrics", "serving"]

_WAIT_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)
_STEP_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)
_SHARES = tuple(eighths / 8 for eighths in range(1, 9))
_LOOK_EVERY_S = 2.0
_PRIORITIES = ("high", "normal", "low")
_PHASES = ("encode", "denoise", "store")


class Metrics:
    """Counts what one worker does; may be called from any thread."""

    def __init__(self, slots: int, device: torch.device, threads: int) -> None:
        """`slots`: rows that may be in flight; `threads`: all of its threads on CPU."""
        self.registry = registry = CollectorRegistry(auto_describe=True)
        self._job_metrics(registry)
        self._engine_metrics(registry)
        self._device_metrics(registry)
        ProcessCollector(registry=registry)
        self._all_slots.set(slots)
        self._flying: dict[str, int] = {}  # rows of each model
        self._lock = threading.Lock()  # of these
        self._use = DeviceUse(device, threads)
        self._device = str(device)
        self._looked_at = float("-inf")

    def resized(self, slots: int) -> None:
        """The engine has another number of slots now."""
        self._all_slots.set(slots)

    def _job_metrics(self, registry: CollectorRegistry) -> None:
        self._waits = Histogram(
            "avocat_queue_wait_seconds",
            "From submission until a worker first took the job.",
            ["priority"],
            buckets=_WAIT_BUCKETS,
            registry=registry,
        )
        self._jobs = Histogram(
            "avocat_job_seconds",
            "From submission until the pictures were stored.",
            ["priority"],
            buckets=_WAIT_BUCKETS,
            registry=registry,
        )
        self._phases = Histogram(
            "avocat_job_phase_seconds",
            "What a job's time went into once it was taken.",
            ["phase"],
            buckets=_WAIT_BUCKETS,
            registry=registry,
        )
        self._ended = Counter("avocat_jobs_ended", "Jobs ended.", ["status"], registry=registry)
        self._failed = Counter(
            "avocat_jobs_failed",
            "Jobs failed, by the type of their problem without /problems/.",
            ["reason"],
            registry=registry,
        )
        self._lost = Counter(
            "avocat_jobs_lost", "Jobs taken over from lost workers.", registry=registry
        )
        self._images = Counter("avocat_images", "Images stored.", registry=registry)
        for priority in _PRIORITIES:
            self._waits.labels(priority)
            self._jobs.labels(priority)
        for phase in _PHASES:
            self._phases.labels(phase)
        for status in ("succeeded", "failed", "canceled"):
            self._ended.labels(status)
        self._failed.labels("worker-lost")

    def _engine_metrics(self, registry: CollectorRegistry) -> None:
        self._steps = Histogram(
            "avocat_engine_step_seconds",
            "A step of the engine: one round of calls of the network.",
            buckets=_STEP_BUCKETS,
            registry=registry,
        )
        self._occupancy = Histogram(
            "avocat_engine_occupancy_ratio",
            "Rows in a step's calls of the network, of those that there is room for.",
            buckets=_SHARES,
            registry=registry,
        )
        self._advanced = Counter("avocat_engine_rows", "Rows advanced.", registry=registry)
        self._calls = Counter("avocat_engine_calls", "Calls of the network.", registry=registry)
        self._in_flight = Gauge(
            "avocat_engine_rows_in_flight",
            "Rows that the last step left on their way.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self._all_slots = Gauge(
            "avocat_engine_slots",
            "Rows that may be on their way.",
            multiprocess_mode="livesum",
            registry=registry,
        )

    def _device_metrics(self, registry: CollectorRegistry) -> None:
        self._memory = Gauge(
            "avocat_device_memory_bytes",
            "Memory of the device: used and total, and allocated by this worker.",
            ["device", "kind"],
            multiprocess_mode="livemax",
            registry=registry,
        )
        self._utilization = Gauge(
            "avocat_device_utilization_ratio",
            "Share of the time in which the device computed (a CPU: for this worker).",
            ["device"],
            multiprocess_mode="livemax",
            registry=registry,
        )

    def stepped(self, report: StepReport, seconds: float, model: str = "") -> None:
        """The engine of a model made a step."""
        self._steps.observe(seconds)
        self._occupancy.observe(report.asked / report.room)
        self._advanced.inc(report.advanced)
        self._calls.inc(report.calls)
        with self._lock:
            self._flying[model] = report.flying
            self._in_flight.set(sum(self._flying.values()))

    def taken(self, flight: Flight) -> None:
        """The worker took a job."""
        record = flight.record
        if record.attempts == 1:  # before a later attempt it did not only wait
            waited = flight.times.claimed - record.created_at
            self._waits.labels(record.request.priority).observe(max(0.0, waited))

    def succeeded(self, flight: Flight) -> None:
        """A job of this worker has its pictures."""
        record, times = flight.record, flight.times
        whole = max(0.0, times.stored - record.created_at)  # two machines' clocks may differ
        self._jobs.labels(record.request.priority).observe(whole)
        for phase, (begin, end) in times.phases().items():
            self._phases.labels(phase).observe(max(0.0, end - begin))
        self._images.inc(len(flight.images))

    def ended(self, status: JobStatus, problem: Problem | None) -> None:
        """This worker wrote the end of a job, its own or a lost one's."""
        self._ended.labels(status.value).inc()
        if problem is not None:
            self._failed.labels(problem.type.removeprefix("/problems/")).inc()

    def lost(self, jobs: int) -> None:
        """So many jobs of lost workers were taken care of."""
        self._lost.inc(jobs)

    def look(self, now: float, drawing: Collection[str]) -> None:
        """Read what the device says, now and then; `now` is monotonic seconds.

        `drawing`: the models that have rows; an engine whose last ones were evicted makes no step.
        """
        with self._lock:
            self._flying = {one: rows for one, rows in self._flying.items() if one in drawing}
            self._in_flight.set(sum(self._flying.values()))
        if now - self._looked_at < _LOOK_EVERY_S:
            return
        self._looked_at = now
        for kind, size in self._use.memory_bytes().items():
            self._memory.labels(self._device, kind).set(size)
        share = self._use.utilization()
        if share is not None:
            self._utilization.labels(self._device).set(share)


@contextmanager
def serving(metrics: Metrics, host: str, port: int | None) -> Iterator[None]:
    """Answer `GET /metrics` at this address meanwhile; nowhere where `port` is None.

    Raises:
        OSError: the address is not to be had.
    """
    if port is None:
        yield
        return
    server, thread = start_http_server(port, host, metrics.registry)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
