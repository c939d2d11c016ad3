"""Latency and throughput under a mixed Poisson load: Avocat against two ways of serving it.

The load is measured in the capacity of a worker that draws one job at a time: what it gets through
when all jobs are there from the start, in forwards of the network. Throughputs are compared in that
state too, for below its capacity every server gets through what comes in.
"""

import random
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks import plots
from benchmarks.arrivals import Arrival, arrivals, at_once, steady, stretched, work
from benchmarks.results import Result, ratios, result
from benchmarks.sides import Avocat, OneByOne, Side, StaticBatches, running
from benchmarks.subject import Plan, executed

__all__ = ["ended", "latencies", "measure"]

OVERLOAD, BUSY = 1.2, 0.8  # of the capacity of one job at a time
MOST_ROUNDS, ROUND_S = 3, 150.0
# Shares of a round, for each of two sides: a burst, a load under which the peer's queue only grows,
# and one that is longer because static batches take a while until as many wait as always will.
BURST, OVERLOADED, STEADY = 0.06, 0.175, 0.24
FIRST_JOBS = 6
START_S = 300.0
POLL_S = 0.05
# At least, on CPU and on a GPU.
LATENCY, THROUGHPUT, STATIC_LATENCY = (2.0, 5.0), (1.2, 3.0), 2.0


@dataclass
class _Found:
    """What the rounds gave; latencies by who had them."""

    throughput: list[float] = field(default_factory=list)
    overload: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    latencies: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))


def measure(plan: Plan) -> list[Result]:
    """Ratios of mean latencies and of throughputs, and Avocat's own latencies."""
    executed(plan)  # what was measured is kept: the processes only read it
    executed(plan, rows=1)
    found = _Found()
    with running(plan) as sides:
        first = at_once(random.Random(0), FIRST_JOBS)
        _, rate, _ = [FIRST_JOBS / max(latencies(side, first, START_S)) for side in sides]
        count = max(1, min(MOST_ROUNDS, int(plan.seconds / ROUND_S)))
        for number in range(count):
            _round(sides, plan.seconds / count, rate, random.Random(number + 1), found)
    if plan.pictures is not None:
        plots.draw_latencies(found.latencies, plan.pictures)
    return _results(plan, found)


def _round(
    sides: tuple[Avocat, OneByOne, StaticBatches],
    seconds: float,
    rate: float,
    dice: random.Random,
    found: _Found,
) -> None:
    """`rate`: about how many jobs a second one at a time gets through."""
    avocat, one_by_one, static = sides
    burst = at_once(dice, max(FIRST_JOBS, round(rate * BURST * seconds)))
    # Half before and half after: what the machine gives changes, and loads are measured in this.
    alone = max(latencies(one_by_one, burst[::2]))
    ours = max(latencies(avocat, burst))
    alone += max(latencies(one_by_one, burst[1::2]))
    found.throughput.append(alone / ours)
    forwards_s = work(burst) / alone
    coming = arrivals(dice, OVERLOAD * len(burst) / alone, OVERLOADED * seconds)
    many = stretched(coming, OVERLOAD, forwards_s)
    usual = steady(dice, BUSY, forwards_s, STEADY * seconds)
    pairs: list[tuple[float, Side, str, list[Arrival], list[float]]] = [
        (OVERLOAD, one_by_one, "one job at a time", many, found.overload),
        (BUSY, static, "static batches", usual, found.busy),
    ]
    for load, peer, name, jobs, into in pairs:
        theirs, mine = latencies(peer, jobs), latencies(avocat, jobs)
        into += ratios([statistics.fmean(theirs)], [statistics.fmean(mine)])
        found.latencies[f"{name}, {load} × capacity"] += theirs
        found.latencies[f"Avocat, {load} × capacity"] += mine


def _results(plan: Plan, found: _Found) -> list[Result]:
    gpu = int(plan.device.type == "cuda")
    times = "times as long"
    one_by_one = f"mean latency at {OVERLOAD} × capacity: one job at a time ÷ Avocat"
    throughput = "throughput at saturation: Avocat ÷ one job at a time"
    static = f"mean latency at {BUSY} × capacity: static batches ÷ Avocat"
    lines: list[tuple[str, Sequence[float], str, float | None]] = [
        (one_by_one, found.overload, times, LATENCY[gpu]),
        (throughput, found.throughput, "times as many", THROUGHPUT[gpu]),
        (static, found.busy, times, STATIC_LATENCY),
    ]
    for load in (BUSY, OVERLOAD):
        name = f"Avocat, {load} × capacity"
        lines.append((f"latency: {name}", found.latencies[name], "s", None))
    return [
        result(name, rounds, unit=unit, at_least=least, command=plan.command)
        for name, rounds, unit, least in lines
    ]


def latencies(side: Side, jobs: Sequence[Arrival], deadline_s: float = START_S) -> list[float]:
    """Seconds from when each job was due to its end, also where it was submitted late.

    Raises:
        TimeoutError: a job did not end within `deadline_s` after the last was submitted.
    """
    began, asked = time.time(), []
    for job in jobs:
        due = began + job.at_s
        time.sleep(max(0.0, due - time.time()))
        asked.append((side.ask(job.request, due), due))
    until = time.monotonic() + deadline_s
    return [ended(side, job, until) - due for job, due in asked]


def ended(side: Side, job: str, until: float) -> float:
    """Wait for the end of a job; its unix time.

    Raises:
        TimeoutError: it has not ended at `until`, in monotonic seconds.
    """
    while (end := side.ended_at(job)) is None:
        if time.monotonic() > until:
            raise TimeoutError(f"job {job} did not end")
        time.sleep(POLL_S)
    return end
