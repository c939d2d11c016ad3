"""What the engine tells of its rows after a step."""

from dataclasses import dataclass, field

from torch import Tensor

__all__ = ["Fault", "Finished", "Snapshot", "StepReport"]


@dataclass(frozen=True, eq=False)
class Finished:
    """A row that left the engine with its picture, float32 `[C, H, W]` in [-1, 1], on CPU."""

    job: str
    index: int
    picture: Tensor


@dataclass(frozen=True)
class Fault:
    """A row that left the engine without one."""

    job: str
    index: int
    reason: str


@dataclass(frozen=True, eq=False)
class Snapshot:
    """What a row on its way would be if it ended now: `denoised`, float32 `[C, H, W]`, on CPU."""

    job: str
    index: int
    step: int  # steps done
    denoised: Tensor


@dataclass
class StepReport:
    """What one step brought."""

    advanced: int = 0  # rows in the step
    calls: int = 0  # of the network, side by side
    asked: int = 0  # rows in those calls
    room: int = 0  # for rows, the rest was padding
    flying: int = 0  # rows that are on their way after it
    shrunk: bool = False  # memory ran out: there are fewer slots now, and all rows began anew
    finished: list[Finished] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    snapshots: list[Snapshot] = field(default_factory=list)
