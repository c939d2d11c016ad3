"""What `/metrics` of an API process tells, for Prometheus.

Labels have few values: routes are templates, and no id, name or text of anybody's is among them.
Several processes behind one port write into the folder of `PROMETHEUS_MULTIPROC_DIR`, and whichever
is asked answers for all; `avocat serve` has its worker write there, too.
"""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from app.errors import INTERNAL, PROBLEMS
from app.jobs.queues import Queues
from app.jobs.record import Priority

__all__ = ["Metrics"]

_SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # the client library's own name for it
_LIVE_GAUGE = re.compile(r"gauge_live\w+_(\d+)\.db")
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
_RESPONSE_BUCKETS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60, 300)
_PRIORITIES: tuple[Priority, ...] = ("high", "normal", "low")
_OUTCOMES = ("accepted", "cached", "replayed")
_POLICIES = ("default", "concurrency", "daily")
_PROMPT_JUDGES = ("blocklist", "moderation")


class Metrics:
    """Counts what this process does."""

    def __init__(self) -> None:
        """Nothing is counted yet; what may be counted often shows as 0."""
        self._registry = registry = CollectorRegistry(auto_describe=True)
        self._requests = Counter(
            "avocat_http_requests",
            "Requests answered, by route template.",
            ["method", "route", "status"],
            registry=registry,
        )
        self._seconds = Histogram(
            "avocat_http_response_seconds",
            "Seconds until an answer begins; an event stream may go on for long after.",
            ["method", "route"],
            buckets=_RESPONSE_BUCKETS,
            registry=registry,
        )
        self._of_route: dict[tuple[str, str, int], Counter] = {}
        self._seconds_of_route: dict[tuple[str, str], Histogram] = {}
        self._open = Gauge(
            "avocat_http_requests_open",
            "Requests and event streams being served.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self._problems = Counter(
            "avocat_http_problems",
            "Requests answered with a problem, by its type without /problems/.",
            ["type"],
            registry=registry,
        )
        self._limits = Counter(
            "avocat_limit_refusals",
            "Submissions refused by a limit of their key, by the limit's name.",
            ["policy"],
            registry=registry,
        )
        self._submissions = Counter(
            "avocat_submissions",
            "Submissions taken in: enqueued, answered from storage, or made before.",
            ["priority", "outcome"],
            registry=registry,
        )
        self._cache = Counter(
            "avocat_cache_lookups",
            "Submissions that an earlier job's pictures might have answered.",
            ["result"],
            registry=registry,
        )
        self._webhooks = Counter(
            "avocat_webhook_calls", "Webhooks called.", ["outcome"], registry=registry
        )
        self._prompts = Counter(
            "avocat_prompt_refusals", "Prompts refused by policy.", ["by"], registry=registry
        )
        self._unmoderated = Counter(
            "avocat_moderation_failures",
            "Prompts about which the moderation endpoint gave no answer.",
            registry=registry,
        )
        self._begin_at_zero()

    def _begin_at_zero(self) -> None:
        self._of_outcome = {
            (priority, outcome): self._submissions.labels(priority, outcome)
            for priority in _PRIORITIES
            for outcome in _OUTCOMES
        }
        for policy in _POLICIES:
            self._limits.labels(policy)
        for result in ("hit", "miss"):
            self._cache.labels(result)
        for kind in (*PROBLEMS.values(), INTERNAL):
            self._problems.labels(kind.slug)
        for judge in _PROMPT_JUDGES:
            self._prompts.labels(judge)
        for outcome in ("delivered", "retried", "given_up"):
            self._webhooks.labels(outcome)

    def refused_prompt(self, by: str) -> None:
        """A prompt may not be drawn."""
        self._prompts.labels(by).inc()

    def moderation_failed(self) -> None:
        """Nobody could say whether a prompt may be drawn."""
        self._unmoderated.inc()

    def opened(self) -> None:
        """A request has come."""
        self._open.inc()

    def closed(self, method: str, route: str, status: int | None, seconds: float | None) -> None:
        """It is over. `seconds`: until its answer began; both None where there was none."""
        self._open.dec()
        if status is None or seconds is None:
            return
        method = method if method in _METHODS else "other"
        counted = self._of_route.get((method, route, status))
        if counted is None:  # the client library takes its time to find them
            counted = self._requests.labels(method, route, f"{status}")
            self._of_route[method, route, status] = counted
            self._seconds_of_route[method, route] = self._seconds.labels(method, route)
        counted.inc()
        self._seconds_of_route[method, route].observe(seconds)

    def problem(self, slug: str, policies: tuple[str, ...] = ()) -> None:
        """A request was answered with a problem; `policies` are the limits it broke."""
        self._problems.labels(slug).inc()
        for policy in policies:
            self._limits.labels(policy).inc()

    def submitted(self, priority: Priority, outcome: str) -> None:
        """A submission was accepted, cached or replayed."""
        self._of_outcome[priority, outcome].inc()

    def looked_up(self, *, hit: bool) -> None:
        """Storage was asked for the pictures of an earlier job."""
        self._cache.labels("hit" if hit else "miss").inc()

    def webhook(self, outcome: str) -> None:
        """A webhook was called: delivered, retried (to be called again) or given_up."""
        self._webhooks.labels(outcome).inc()

    def exposition(self, accept: str, queues: Queues | None) -> tuple[bytes, str]:
        """The figures and their content type; `queues` is None while Redis cannot be asked."""
        encode, content_type = choose_encoder(accept)
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_State(queues))
        folder = os.environ.get(_SHARED_FOLDER)
        if folder:
            _forget_the_dead(Path(folder))
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        else:
            registry.register(self._registry)
        return encode(registry), content_type


class _State(Collector):
    """What Redis says, the same from every API process."""

    def __init__(self, queues: Queues | None) -> None:
        self._queues = queues

    def collect(self) -> Iterator[GaugeMetricFamily]:
        up = "Whether this API process reaches Redis."
        yield GaugeMetricFamily("avocat_redis_up", up, value=int(self._queues is not None))
        if self._queues is None:
            return
        live = "Workers whose heartbeat came in time."
        yield GaugeMetricFamily("avocat_workers", live, value=self._queues.workers)
        waiting = GaugeMetricFamily("avocat_queue_jobs", "Jobs that wait.", labels=["priority"])
        running = GaugeMetricFamily(
            "avocat_running_jobs", "Jobs that workers hold.", labels=["priority"]
        )
        oldest = GaugeMetricFamily(
            "avocat_queue_oldest_seconds",
            "How long the job that is taken next has been there.",
            labels=["priority"],
        )
        for priority, queue in self._queues.by_priority.items():
            waiting.add_metric([priority], queue.waiting)
            running.add_metric([priority], queue.running)
            oldest.add_metric([priority], queue.oldest_s)
        storage = GaugeMetricFamily(
            "avocat_storage_bytes",
            "What images take, and what is promised to jobs where there is a quota.",
            labels=["kind"],
        )
        for kind, size in self._queues.storage.items():
            storage.add_metric([kind], size)
        yield from (waiting, running, oldest, storage)


def _forget_the_dead(folder: Path) -> None:
    """Take the gauges of ended processes out of the sums; what they counted stays."""
    for file in folder.glob("gauge_live*.db"):
        named = _LIVE_GAUGE.fullmatch(file.name)
        if named is not None and not Path(f"/proc/{named[1]}").exists():
            with suppress(FileNotFoundError):  # another process was faster
                mark_process_dead(int(named[1]))  # type: ignore[no-untyped-call]
