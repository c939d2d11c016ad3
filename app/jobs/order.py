"""Whose turn it is among the rows in flight. Pure.

Least work left first, which no other order beats in mean latency (Schrage 1968). The work is that
of the job, for it has ended only with its last row. So that nothing is passed over for ever, what
comes in after c forwards of the network counts as having `AGEING` · c more of them left: a job of W
forwards is overtaken only by what comes in during the next W / `AGEING` of them. Priorities are
such handicaps, too. In simulations (tests/app/test_order.py) less ageing gives a lower mean and
longer waits for long jobs; with 0.1 the longest is about twice that of first come, first served.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Protocol, TypeVar

__all__ = ["AGEING", "HANDICAPS", "Standing", "in_turn", "tag"]

AGEING: Final = 0.1
# In forwards: four guided pictures of fifty steps.
HANDICAPS: Final[Mapping[str, float]] = {"high": 0.0, "normal": 400.0, "low": 800.0}


class Standing(Protocol):
    """A row. `left`: forwards until it is done; `tag`: what `tag` gave when it came in."""

    @property
    def job(self) -> str: ...
    @property
    def left(self) -> float: ...
    @property
    def tag(self) -> float: ...


Row = TypeVar("Row", bound=Standing)


def tag(forwards: float, priority: str) -> float:
    """For a job that comes in after so many forwards of the engine."""
    return AGEING * forwards + HANDICAPS[priority]


def in_turn(rows: Sequence[Row], others: Iterable[Row] = ()) -> list[Row]:
    """The rows, the next one first; `others` are of the same jobs and can have no turn yet."""
    left: dict[str, float] = {}
    for row in (*rows, *others):
        left[row.job] = left.get(row.job, 0) + row.left
    return sorted(rows, key=lambda row: (row.tag + left[row.job], -row.left))
