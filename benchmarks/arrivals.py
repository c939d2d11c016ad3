"""When jobs come: a Poisson process, or all at once."""

import random
from dataclasses import dataclass

from app.jobs.record import JobRequest
from benchmarks.subject import mixed

__all__ = ["Arrival", "arrivals", "at_once"]


@dataclass(frozen=True)
class Arrival:
    """A job, and when it comes: seconds after the load began."""

    at_s: float
    request: JobRequest


def arrivals(dice: random.Random, rate: float, seconds: float) -> list[Arrival]:
    """Mixed jobs of a Poisson process of `rate` a second, one at least."""
    found: list[Arrival] = []
    at_s = dice.expovariate(rate)
    while at_s < seconds or not found:
        found.append(Arrival(at_s, mixed(dice)))
        at_s += dice.expovariate(rate)
    return found


def at_once(dice: random.Random, count: int) -> list[Arrival]:
    """Mixed jobs that are all there from the start."""
    return [Arrival(0.0, mixed(dice)) for _ in range(count)]
