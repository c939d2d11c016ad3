"""Whose turn it is among the rows in flight. Pure.

Least work left first, which no other order beats in mean latency (Schrage 1968). The work is that
of the job, for it has ended only with its last row. So that nothing is passed over for ever, what
comes in after c forwards of the network counts as having `AGEING` · c more of them left: a job of W
forwards is overtaken only by what comes in during the next W / `AGEING` of them. Priorities are
such handicaps, too. In simulations (tests/app/test_order.py) less ageing gives a lower mean and
longer waits for long jobs; with 0.1 the longest is about twice that of first come, first served.

Forwards say nothing of seconds, and jobs have so many of these: who has been in the engine for too
long is due, and goes before all who are not, the one that has been due longest first.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Protocol, TypeVar

__all__ = ["AGEING", "HANDICAPS", "Standing", "due_after_s", "in_turn", "tag"]

AGEING: Final = 0.1
_SHARE: Final = 0.25  # of the time a job may take, that others may go before it
# In forwards: four guided pictures of fifty steps.
HANDICAPS: Final[Mapping[str, float]] = {"high": 0.0, "normal": 400.0, "low": 800.0}


class Standing(Protocol):
    """A row. `left`: forwards until it is done; `tag`: what `tag` gave when it came in.

    `due_s`: from when on it is due, on the clock of `now`.
    """

    @property
    def job(self) -> str: ...
    @property
    def left(self) -> float: ...
    @property
    def tag(self) -> float: ...
    @property
    def due_s(self) -> float: ...


Row = TypeVar("Row", bound=Standing)


def tag(forwards: float, priority: str) -> float:
    """For a job that comes in after so many forwards of the engine."""
    return AGEING * forwards + HANDICAPS[priority]


def due_after_s(patience_s: float, timeout_s: float) -> float:
    """Seconds from its coming in until a job is due, which fails `timeout_s` after that."""
    return min(patience_s, _SHARE * timeout_s)


def in_turn(rows: Sequence[Row], others: Iterable[Row] = (), now: float = -math.inf) -> list[Row]:
    """The rows, the next one first; `others` are of the same jobs and can have no turn yet."""
    left: dict[str, float] = {}
    for row in rows:
        left[row.job] = left.get(row.job, 0) + row.left
    for row in others:
        if row.job in left:
            left[row.job] += row.left

    def place(row: Row) -> tuple[float, float, float]:
        due_s = row.due_s if row.due_s <= now else math.inf
        return due_s, row.tag + left[row.job], -row.left

    return sorted(rows, key=place)
