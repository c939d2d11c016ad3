"""What others see of running jobs: their steps, and what a step costs."""

import json
import time
from collections.abc import Sequence

from redis import Redis

from app.jobs.store import JobStore, Wishes
from app.keys import STATS

__all__ = ["Progress", "Stats"]


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


class Stats:
    """What a step costs, for estimates of the time left; about once a second."""

    INTERVAL_S = 1.0

    def __init__(self, redis: Redis, model: str, slots: int) -> None:
        self._redis = redis
        self._model = model
        self._slots = slots
        self._told_at = float("-inf")

    def tell(self, seconds_per_row_step: float | None, now: float) -> None:
        """Publish if it is time and there is something to tell; `now` is monotonic seconds."""
        if seconds_per_row_step is None or now - self._told_at < self.INTERVAL_S:
            return
        stats = {
            "seconds_per_row_step": round(seconds_per_row_step, 6),
            "slots": self._slots,
            "updated_at": round(time.time(), 3),
        }
        self._redis.hset(STATS, self._model, json.dumps(stats))
        self._told_at = now
