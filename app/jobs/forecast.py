"""When jobs will be done: the engines' own rules, played forward. Pure.

An engine draws the rows in flight in the order of app/jobs/order.py, as many at a time as it
computes at once, so a job's end depends on who is before it and on who comes in when somebody
leaves. What arrives later is not foreseen, and so nobody is passed over until it is due.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from app.jobs.line import Line
from app.jobs.order import in_turn, tag

__all__ = ["Engine", "Load", "Playing", "forecast"]


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
    priority: str = "normal"
    started: float = 0.0  # unix seconds an engine has it from


@dataclass
class _Row:
    load: Load
    steps: float  # left
    tag: float
    due_s: float = math.inf

    @property
    def job(self) -> str:
        return self.load.job_id

    @property
    def left(self) -> float:
        return self.steps * self.load.forwards


class Playing:
    """One engine as time goes on. Rows of a job for which there is no slot wait in it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.rows: list[_Row] = []
        self.now = 0.0
        self._shares: list[tuple[_Row, float]] | None = None  # steps of a round

    @property
    def free(self) -> int:
        """Slots without a row; below 0 where rows wait."""
        return self.engine.slots - len(self.rows)

    def admit(self, load: Load, at: float) -> None:
        """`at`: from when the engine has it, seconds on the clock of `now`."""
        forwards = at * self.engine.micro_batch / self.engine.seconds_per_call
        turn = tag(forwards, load.priority)
        self.rows += [_Row(load, load.steps, turn) for _ in range(load.rows)]
        self._shares = None

    def next_end(self) -> float:
        """When the first row in flight ends."""
        rounds = min((row.steps / share for row, share in self._in_turn()), default=math.inf)
        return self.now + rounds * self.engine.seconds_per_call

    def advance(self, to: float) -> list[str]:
        """Let time pass until `to`, at most until the next end; the jobs that ended by then."""
        rounds = (to - self.now) / self.engine.seconds_per_call
        self.now = to
        for row, share in self._in_turn():
            row.steps -= rounds * share
        # A remainder too small for the clock to advance by would never end.
        over = max(1e-9, math.ulp(to) / self.engine.seconds_per_call)
        ended = {row.job for row in self.rows if row.steps <= over}
        if ended:
            self.rows = [row for row in self.rows if row.steps > over]
            self._shares = None
        return list(ended - {row.job for row in self.rows})

    def _in_turn(self) -> list[tuple[_Row, float]]:
        """Rows that advance, with their share of each round: one step of it at most."""
        if self._shares is None:
            self._shares, room = [], float(self.engine.micro_batch)
            slots = self.engine.slots
            for row in in_turn(self.rows[:slots], self.rows[slots:]):
                if room <= 0:
                    break
                share = min(1.0, room / row.load.forwards)
                room -= share * row.load.forwards
                self._shares.append((row, share))
        return self._shares


def forecast(
    engines: Sequence[Engine],
    running: Mapping[int, Sequence[Load]],
    waiting: Sequence[Sequence[Load]],
    patience_s: float = math.inf,
    at: float = 0.0,
) -> dict[str, float]:
    """Seconds from `at`, unix seconds, until each job is done.

    `running`: by index of the engine that has them; `waiting`: by queue, as `Line` has them. A job
    is taken when an engine has a slot free, by the one with the fewest rows, and none overtakes it.
    """
    playing = [Playing(engine) for engine in engines]
    for index, loads in running.items():
        for load in loads:
            playing[index].admit(load, load.started - at)
    line = Line(waiting, lambda load: load.since, patience_s=patience_s)
    now = 0.0
    ends: dict[str, float] = {}
    while (head := line.head(at + now)) is not None:
        taker = min(playing, key=lambda one: len(one.rows))
        if taker.free > 0:
            taker.admit(head, now)
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
