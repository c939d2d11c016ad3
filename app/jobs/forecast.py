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
    """A worker's engine.

    `micro_batch`: rows that are computed at once, in one call of the network or several side by
    side; `seconds_per_call`: of that, all around it included.
    """

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


@dataclass
class _Row:
    load: Load
    left: float  # steps


class _Playing:
    """One engine as time goes on. Rows of a job for which there is no slot wait in it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.rows: list[_Row] = []
        self.now = 0.0

    @property
    def free(self) -> int:
        return self.engine.slots - len(self.rows)

    def admit(self, load: Load) -> None:
        self.rows += [_Row(load, load.steps) for _ in range(load.rows)]

    def next_end(self) -> float:
        """When the first row in flight ends."""
        flying = self._flying
        return self.now + min(row.left for row in flying) * self._step_s if flying else math.inf

    def advance(self, to: float) -> list[str]:
        """Let time pass until `to`, at most until the next end; the jobs that ended by then."""
        if not self.rows:
            self.now = to
            return []
        done = (to - self.now) / self._step_s
        self.now = to
        for row in self._flying:
            row.left -= done
        ended = {row.load.job_id for row in self.rows if row.left <= 1e-9}
        self.rows = [row for row in self.rows if row.left > 1e-9]
        return list(ended - {row.load.job_id for row in self.rows})

    @property
    def _flying(self) -> list[_Row]:
        return self.rows[: self.engine.slots]

    @property
    def _step_s(self) -> float:
        """Seconds of a step with the rows in flight: what fills no call waits for the next step."""
        forwards = sum(row.load.forwards for row in self._flying)
        return max(1.0, forwards / self.engine.micro_batch) * self.engine.seconds_per_call


def forecast(
    engines: Sequence[Engine],
    running: Mapping[int, Sequence[Load]],
    waiting: Sequence[Sequence[Load]],
    patience_s: float = math.inf,
    at: float = 0.0,
) -> dict[str, float]:
    """Seconds from `at`, unix seconds, until each job is done.

    `running`: by index of the engine that has them; `waiting`: by queue, as `Line` has them. A job
    is taken when an engine has a slot free, and none overtakes it.
    """
    playing = [_Playing(engine) for engine in engines]
    for index, loads in running.items():
        for load in loads:
            playing[index].admit(load)
    line = Line(waiting, lambda load: load.since, patience_s=patience_s)
    now = 0.0
    ends: dict[str, float] = {}
    while (head := line.head(at + now)) is not None:
        taker = next((one for one in playing if one.free > 0), None)
        if taker is not None:
            taker.admit(head)
            line.take(at + now)
            continue
        now = min(one.next_end() for one in playing)
        for one in playing:
            ends |= dict.fromkeys(one.advance(now), now)
    for one in playing:  # nobody comes in any more: each engine plays on by itself
        while one.rows:
            now = one.next_end()
            ends |= dict.fromkeys(one.advance(now), now)
    return ends
