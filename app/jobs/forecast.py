"""When jobs will be done: the engines' own rules, played forward. Pure.

An engine advances all rows in flight one step at a time, so a job's end depends on who shares the
batch with it and on who comes in when somebody leaves. What arrives later is not foreseen.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from app.jobs.line import Line

__all__ = ["Engine", "Load", "forecast"]


@dataclass(frozen=True)
class Engine:
    """A worker's engine. `seconds_per_call`: of one call of the network, all around it included."""

    slots: int
    micro_batch: int
    seconds_per_call: float


@dataclass(frozen=True)
class Load:
    """What a job still asks of an engine."""

    job_id: str
    rows: int
    steps: float  # left, for each row
    forwards: float  # per row and step: 2 with guidance, 1 without, between where it acts in part
    since: float = math.inf  # unix seconds it waits from


class _Playing:
    """One engine as time goes on."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.left: dict[str, float] = {}  # steps of the jobs in flight
        self.loads: dict[str, Load] = {}
        self.now = 0.0

    @property
    def free(self) -> int:
        return self.engine.slots - sum(load.rows for load in self.loads.values())

    @property
    def step_s(self) -> float:
        """Seconds of a step with the rows in flight."""
        forwards = sum(
            min(load.rows, self.engine.slots) * load.forwards for load in self.loads.values()
        )
        calls = math.ceil(forwards / self.engine.micro_batch)
        return max(1, calls) * self.engine.seconds_per_call

    def admit(self, load: Load) -> None:
        # Rows beyond the slots wait for the first ones to end.
        rounds = math.ceil(load.rows / self.engine.slots)
        self.loads[load.job_id] = load
        self.left[load.job_id] = load.steps * rounds

    def next_end(self) -> float:
        """When the first job in flight ends."""
        return self.now + min(self.left.values()) * self.step_s if self.left else math.inf

    def advance(self, to: float) -> list[str]:
        """Let time pass; the jobs that ended by then."""
        done = (to - self.now) / self.step_s if self.left else 0.0
        self.now = to
        for job_id in self.left:
            self.left[job_id] -= done
        ended = [job_id for job_id, left in self.left.items() if left <= 1e-9]
        for job_id in ended:
            del self.left[job_id], self.loads[job_id]
        return ended


def forecast(
    engines: Sequence[Engine],
    running: Mapping[int, Sequence[Load]],
    waiting: Sequence[Sequence[Load]],
    patience_s: float = math.inf,
    at: float = 0.0,
) -> dict[str, float]:
    """Seconds from `at`, unix seconds, until each job is done.

    `running`: by index of the engine that has them; `waiting`: by queue, as `Line` has them. A job
    is taken when an engine has slots for all of its rows or none in flight, and none overtakes it.
    """
    playing = [_Playing(engine) for engine in engines]
    for index, loads in running.items():
        for load in loads:
            playing[index].admit(load)
    line = Line(waiting, lambda load: load.since, patience_s=patience_s)
    now = 0.0
    ends: dict[str, float] = {}
    while (head := line.head(at + now)) is not None:
        taker = next((one for one in playing if one.free >= head.rows or not one.loads), None)
        if taker is not None:
            taker.admit(head)
            line.take(at + now)
            continue
        now = min(one.next_end() for one in playing)
        for one in playing:
            ends |= dict.fromkeys(one.advance(now), now)
    for one in playing:  # nobody comes in any more: each engine plays on by itself
        while one.left:
            now = one.next_end()
            ends |= dict.fromkeys(one.advance(now), now)
    return ends
