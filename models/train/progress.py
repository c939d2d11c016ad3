"""How far a training run is: its budget, learning-rate schedule and metrics file."""

import json
import math
import time
from pathlib import Path
from typing import NamedTuple

import torch

from models.replacing import replacing
from models.train import parallel


class TrainingState(NamedTuple):
    """How far a run is: updates made, seconds spent, pictures shown to the network."""

    step: int = 0
    spent_s: float = 0.0
    pictures: int = 0


class Budget:
    """A run's length in steps, or in minutes where the machine's speed is not known before.

    The learning rate warms up, then falls along a cosine to 5 % at the end of the budget. With
    `steps` the curve does not depend on the clock, so a resumed run equals an unbroken one.
    Processes that train together go by the first one's clock.
    """

    def __init__(
        self,
        steps: int | None,
        minutes: float | None,
        warmup: int = 200,
        device: torch.device | None = None,
        call_minutes: float | None = None,
    ) -> None:
        """`call_minutes`: how long this process may go on; the next one resumes the run."""
        if (steps is None) == (minutes is None):
            raise ValueError(f"give either steps or minutes (got {steps!r} and {minutes!r})")
        self.total, self.minutes, self.call_minutes = steps, minutes, call_minutes
        self.warmup = warmup if steps is None else min(warmup, steps // 10 + 1)
        self.device = device or torch.device("cpu")
        self.state = self._resumed = TrainingState()
        self._last = time.monotonic()

    def resume(self, state: TrainingState) -> None:
        """Go on from a checkpoint."""
        self.state = self._resumed = state
        self._last = time.monotonic()

    def advance(self, pictures: int = 0) -> int:
        """Count one finished step on so many pictures; returns how many steps there are now."""
        now = time.monotonic()
        spent_s = parallel.agree(self.spent_s + now - self._last, self.device)
        self._last = now
        self.state = TrainingState(self.step + 1, spent_s, self.state.pictures + pictures)
        return self.step

    @property
    def step(self) -> int:
        return self.state.step

    @property
    def spent_s(self) -> float:
        return self.state.spent_s

    @property
    def pictures_per_s(self) -> float:
        """The rate since the run was started or resumed."""
        seconds = self.spent_s - self._resumed.spent_s
        return (self.state.pictures - self._resumed.pictures) / max(seconds, 1e-9)

    @property
    def fraction(self) -> float:
        """Share of the budget that is spent, in [0, 1]."""
        if self.total is not None:
            return min(1.0, self.step / self.total)
        return min(1.0, self.spent_s / (60 * (self.minutes or 1)))

    @property
    def done(self) -> bool:
        return self.fraction >= 1.0

    @property
    def paused(self) -> bool:
        """Whether this process is to stop here, though the run is not done."""
        here_s = self.spent_s - self._resumed.spent_s
        return self.call_minutes is not None and here_s >= 60 * self.call_minutes

    def learning_rate_scale(self) -> float:
        """Share of the peak learning rate for the next step, in (0, 1]."""
        cosine = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * self.fraction))
        return cosine * min(1.0, (self.step + 1) / self.warmup)


def _step_of(line: str) -> float:
    """The step of a line; past every step if a kill cut the line short."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


class Metrics:
    """One JSON line per step; a resumed run goes on in the same file, after the step it resumes."""

    def __init__(self, path: Path, resumed_step: int = 0) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        if path.exists():  # drop the steps between the last checkpoint and the kill
            lines = path.read_text().splitlines()
            kept = [line for line in lines if _step_of(line) <= resumed_step]
            with replacing(path) as file:
                file.write("".join(line + "\n" for line in kept).encode())

    def write(self, step: int, spent_s: float, values: dict[str, float]) -> None:
        row = {
            "step": step,
            "seconds": round(spent_s, 2),
            **{k: round(v, 6) for k, v in values.items()},
        }
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
