"""What others see of running jobs: their steps, and what a step costs."""

import json
import math
from collections.abc import Sequence

from redis import Redis

from app.jobs.store import JobStore, Wishes
from app.keys import worker_speed

__all__ = ["Progress", "Speed"]


class Progress:
    """Steps of all held jobs in one round trip, ten times a second at most."""

    INTERVAL_S = 0.1
    # Even when nothing moves: the answer names the jobs that somebody cancelled meanwhile.
    QUIET_INTERVAL_S = 1.0

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._told: list[tuple[str, str, int]] = []
        self._told_at = float("-inf")

    def tell(self, steps: Sequence[tuple[str, str, int]], now: float) -> Wishes:
        """Publish (job id, execution, steps done) if it is time; `now` is monotonic seconds.

        Returns:
            What is wanted of the jobs; nothing where it was not time to ask.
        """
        moved = list(steps) != self._told
        if now - self._told_at < (self.INTERVAL_S if moved else self.QUIET_INTERVAL_S):
            return Wishes()
        wishes = self._store.progress(steps)
        self._told, self._told_at = list(steps), now
        return wishes


class Speed:
    """What a call of the network costs here, all around it included: for estimates of time left.

    Wall time over calls while there are jobs, the last half minute counting most; so what encoding,
    storing and other work on the machine cost is in it.
    """

    INTERVAL_S = 1.0
    HORIZON_S = 20.0
    FIRST_CALLS = 20  # so much weight has what was measured at start

    def __init__(
        self,
        redis: Redis,
        worker_key: str,
        model: str,
        slots: int,
        micro_batch: int,
        seconds_per_call: float,
    ) -> None:
        """`seconds_per_call`: as far as it is known before the first job."""
        self._redis = redis
        self._key, self._field = worker_key, worker_speed(model)
        self._shape = {"slots": slots, "micro_batch": micro_batch}
        self._seconds = seconds_per_call * self.FIRST_CALLS
        self._calls = float(self.FIRST_CALLS)
        self._since: tuple[float, int] | None = None  # when this stretch of work began, and calls
        self._told_at = float("-inf")

    def reshape(self, slots: int, micro_batch: int) -> None:
        """The engine has another number of slots or another batch size now."""
        self._shape = {"slots": slots, "micro_batch": micro_batch}

    @property
    def seconds_per_call(self) -> float:
        """The estimate now."""
        return self._seconds / self._calls

    def tell(self, calls: int, *, busy: bool, now: float) -> None:
        """Take note of the network's `calls` so far, and publish if it is time."""
        if self._since is not None:
            self._note(calls, now, over=not busy)
        elif busy:
            self._since = now, calls
        if now - self._told_at >= self.INTERVAL_S:
            told = {**self._shape, "seconds_per_call": round(self.seconds_per_call, 7)}
            self._redis.hset(self._key, self._field, json.dumps(told))
            self._told_at = now

    def forget(self) -> None:
        """The model is unloaded: there is nothing to tell any more."""
        self._redis.hdel(self._key, self._field)

    def _note(self, calls: int, now: float, *, over: bool) -> None:
        began, before = self._since or (now, calls)
        if not over and now - began < self.INTERVAL_S:
            return
        if calls > before:
            kept = math.exp(-(now - began) / self.HORIZON_S)
            self._seconds = self._seconds * kept + now - began
            self._calls = self._calls * kept + calls - before
        self._since = None if over else (now, calls)
