"""When jobs come: all at once, by a Poisson process, or by one that is like a load without end."""

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from app.jobs.record import JobRequest
from benchmarks.subject import mixed

__all__ = ["Arrival", "arrivals", "at_once", "steady", "stretched", "work"]

Draw = Callable[[random.Random], JobRequest]
_TRIED: Final = 30  # processes of which the most usual one is taken


@dataclass(frozen=True)
class Arrival:
    """A job, and when it comes: seconds after the load began."""

    at_s: float
    request: JobRequest


def arrivals(dice: random.Random, rate: float, seconds: float, job: Draw = mixed) -> list[Arrival]:
    """Jobs of a Poisson process of `rate` a second, one at least; `job` draws each."""
    found: list[Arrival] = []
    at_s = dice.expovariate(rate)
    while at_s < seconds or not found:
        found.append(Arrival(at_s, job(dice)))
        at_s += dice.expovariate(rate)
    return found


def at_once(dice: random.Random, count: int, job: Draw = mixed) -> list[Arrival]:
    """Jobs that are all there from the start; `job` draws each."""
    return [Arrival(0.0, job(dice)) for _ in range(count)]


def work(jobs: Sequence[Arrival]) -> int:
    """Forwards of the network that jobs need."""
    return sum(job.request.rows * job.request.forwards for job in jobs)


def stretched(jobs: Sequence[Arrival], load: float, forwards_s: float) -> list[Arrival]:
    """The same jobs, so far apart that they are `load` of `forwards_s` forwards a second.

    In a short load chance alone makes that a fifth more or less.
    """
    factor = work(jobs) / (load * forwards_s * jobs[-1].at_s)
    return [Arrival(job.at_s * factor, job.request) for job in jobs]


def steady(dice: random.Random, load: float, forwards_s: float, seconds: float) -> list[Arrival]:
    """Jobs of about `seconds` that are with one server for as long as in the long run.

    A load begins with nobody waiting, so the mean wait of a short one is below that of a long one,
    and hangs on where its few bursts fall. Of several Poisson processes, stretched to `load`, the
    one is taken whose mean time from coming to end, with a server of `forwards_s` that draws one
    job after the other, is nearest to that of the long run: E[S] + λ E[S²] / (2 (1 - ρ)), with S
    seconds of service, λ jobs a second and ρ = λ E[S] the load (the mean value formula of Pollaczek
    and Khinchine). No other server is asked.

    Raises:
        ValueError: `load` is not between 0 and 1: beyond it there is no long run.
    """
    if not 0 < load < 1:
        raise ValueError(f"load {load!r} must be between 0 and 1")
    sizes = [work([job]) / forwards_s for job in at_once(dice, 1000)]
    service_s, squares = statistics.fmean(sizes), statistics.fmean(size**2 for size in sizes)
    rate = load / service_s
    usual_s = service_s + rate * squares / (2 * (1 - load))
    tried = [stretched(arrivals(dice, rate, seconds), load, forwards_s) for _ in range(_TRIED)]
    return min(tried, key=lambda jobs: abs(statistics.fmean(_stays(jobs, forwards_s)) - usual_s))


def _stays(jobs: Sequence[Arrival], forwards_s: float) -> list[float]:
    """Seconds from coming to end of each job, one after the other."""
    ends = accumulate(
        jobs,
        lambda free_s, job: max(free_s, job.at_s) + work([job]) / forwards_s,
        initial=0.0,
    )
    return [end - job.at_s for end, job in zip(list(ends)[1:], jobs, strict=True)]
