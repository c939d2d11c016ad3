"""An engine as the simulation of queueing has it: jobs flow at the pace of the rows in flight."""

import math

from app.jobs.forecast import Engine, Load

__all__ = ["Playing"]


class Playing:
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
        return max(1.0, forwards / self.engine.micro_batch) * self.engine.seconds_per_call

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
