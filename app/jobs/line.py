"""Which waiting job is taken next. Pure: workers obey it, and the forecast plays it forward.

Within a queue the order is made when jobs are submitted (`SUBMIT`, app/jobs/scripts.py): by start
tags, so that owners have equal shares (start-time fair queueing, Goyal et al. 1996), and an owner's
own jobs by age. Among the queues the highest priority goes first, but for one rule: a queue in
which a job has waited for `patience_s` has every second turn. So whatever else comes, a job of low
priority waits for its patience, and then for at most twice the work that is before it in its queue.
"""

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Generic, TypeVar

__all__ = ["Line"]

Job = TypeVar("Job")


class Line(Generic[Job]):
    """Waiting jobs by queue, the highest priority first; each queue in the order to be taken."""

    def __init__(
        self,
        queues: Sequence[Sequence[Job]],
        since: Callable[[Job], float],
        *,
        patience_s: float,
        beyond: Sequence[float] = (),
        impatient: bool = True,
    ) -> None:
        """`since` tells the moment a job waits from, in the same clock as `now` of the methods.

        `beyond`: the earliest such moment among the jobs of each queue that are not given here.
        `impatient`: whether the first turn may go to a queue whose patience is over; the caller
        says no if its last one did.
        """
        self._queues = queues
        self._patience_s = patience_s
        self.impatient = impatient
        self._taken = [0] * len(queues)
        # Since when the oldest waits among a queue's jobs from each place on.
        self._oldest = [
            _oldest_from(list(map(since, queue)), last)
            for queue, last in zip(queues, beyond or [math.inf] * len(queues), strict=True)
        ]

    def head(self, now: float) -> Job | None:
        """The job to be taken next; None if nobody waits."""
        at = self._next(now)
        return None if at is None else self._queues[at][self._taken[at]]

    def take(self, now: float) -> bool:
        """Let the head go; whether it goes because the patience of its queue is over.

        Raises:
            IndexError: nobody waits.
        """
        at = self._next(now)
        if at is None:
            raise IndexError("nobody waits")
        late = at != self._first()
        self.impatient = not late
        self._taken[at] += 1
        return late

    def _next(self, now: float) -> int | None:
        first = self._first()
        if first is None or not self.impatient:
            return first
        lower = [at for at in self._waiting() if at > first]
        over = [at for at in lower if now - self._since(at) >= self._patience_s]
        return min(over, key=self._since) if over else first

    def _since(self, at: int) -> float:
        return self._oldest[at][self._taken[at]]

    def _first(self) -> int | None:
        return next(iter(self._waiting()), None)

    def _waiting(self) -> list[int]:
        return [at for at, queue in enumerate(self._queues) if self._taken[at] < len(queue)]


def _oldest_from(since: list[float], beyond: float) -> list[float]:
    """For each place the least of it and all behind it."""
    return list(accumulate([beyond, *reversed(since)], min))[::-1]
