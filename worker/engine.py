"""The engine: any mixture of rows, advanced together one denoising step at a time.

A row's result depends neither on its neighbours nor on its place among them: the network only ever
sees one batch shape, short batches are padded, and all other arithmetic is elementwise.
"""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.bundle import Bundle
from models.guidance import guide
from models.samplers import step
from worker.rows import Row, RowSpec

__all__ = ["Engine", "Fault", "Finished", "Snapshot", "StepReport"]


@dataclass(frozen=True, eq=False)
class Finished:
    """A row that left the engine with its picture, float32 `[C, H, W]` in [-1, 1]."""

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
    """What a row on its way would be if it ended now: `denoised`, float32 `[C, H, W]`."""

    job: str
    index: int
    step: int  # steps done
    denoised: Tensor


@dataclass
class StepReport:
    """What one step brought."""

    advanced: int = 0  # rows in the step
    calls: int = 0  # of the network
    finished: list[Finished] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    snapshots: list[Snapshot] = field(default_factory=list)


class Engine:
    """Holds up to `slots` rows on the device; rows beyond that wait their turn in order.

    Not thread-safe. An exception out of `step` means the device or the network is at fault: no row
    can be trusted any more.
    """

    def __init__(self, bundle: Bundle, slots: int, micro_batch: int) -> None:
        """`micro_batch` is the one batch size the network is called with.

        Raises:
            ValueError: `slots` or `micro_batch` below 1.
        """
        if slots < 1 or micro_batch < 1:
            raise ValueError(f"slots {slots!r} and micro_batch {micro_batch!r} must be at least 1")
        side, width = bundle.config.image_size, bundle.context.width
        self.slots = slots
        self.micro_batch = micro_batch
        self.device = bundle.context.device
        self._shape = (bundle.config.channels, side, side)
        self._denoiser = bundle.denoiser
        self._schedule = bundle.schedule
        self._calls = 0  # of the network, in the last step
        self._rows: dict[int, Row] = {}  # by slot
        self._waiting: deque[Row] = deque()
        self._x = torch.zeros(slots, *self._shape, device=self.device)
        self._denoised = torch.zeros_like(self._x)
        # [slots, 2, D]: the prompt's context, and the unconditional one
        self._contexts = torch.zeros(slots, 2, width, device=self.device)

    @property
    def free(self) -> int:
        """Rows that could be admitted and start at once."""
        return max(0, self.slots - len(self._rows) - len(self._waiting))

    @property
    def idle(self) -> bool:
        """Whether there is nothing to step."""
        return not self._rows and not self._waiting

    def admit(self, specs: Sequence[RowSpec]) -> None:
        """Take rows in, all or none; they start as slots are free.

        Raises:
            ValueError: a context of the wrong shape, or a trajectory that does not exist.
        """
        for spec in specs:
            for context in (spec.context, spec.unconditional):
                if context.shape != self._contexts.shape[2:]:
                    raise ValueError(
                        f"context is {tuple(context.shape)}; this bundle takes "
                        f"{tuple(self._contexts.shape[2:])}"
                    )
        self._waiting.extend([Row(spec, self._schedule, self._shape) for spec in specs])

    def evict(self, job: str) -> None:
        """Drop all rows of `job`; nothing happens if there are none."""
        self._rows = {slot: row for slot, row in self._rows.items() if row.spec.job != job}
        self._waiting = deque(row for row in self._waiting if row.spec.job != job)

    def preview(self, job: str, count: int) -> None:
        """From now on report `count` snapshots of each row of `job`, spread over its way."""
        for row in (*self._rows.values(), *self._waiting):
            if row.spec.job == job:
                row.previews = count

    def steps_done(self) -> dict[str, int]:
        """Steps done by the rows in flight, summed by job."""
        done: dict[str, int] = {row.spec.job: 0 for row in self._waiting}
        for row in self._rows.values():
            done[row.spec.job] = done.get(row.spec.job, 0) + row.position
        return done

    @torch.inference_mode()
    def warm_up(self) -> float:
        """Call the network, so that the first job does not pay for what is done only once.

        Returns:
            Seconds of a call after the first.
        """
        which = torch.zeros(self.micro_batch, dtype=torch.int64, device=self.device)
        began = 0.0
        for _ in range(2):
            began = time.perf_counter()
            # Its answer is looked at, for a GPU answers before it has computed.
            self._denoiser(self._x[which], which, self._contexts[which, 0]).sum().item()
        return time.perf_counter() - began

    @torch.inference_mode()
    def step(self) -> StepReport:
        """Advance every row one step; rows that are done or broken leave."""
        self._fill_slots()
        if not self._rows:
            return StepReport()
        slots, rows = list(self._rows), list(self._rows.values())
        eps = self._predict(slots, rows)
        coefficients = torch.stack([row.coefficients for row in rows]).to(self.device)
        x, denoised = step(
            self._x[slots], eps, self._denoised[slots], self._noise(rows), coefficients
        )
        self._x[slots], self._denoised[slots] = x, denoised
        for row in rows:
            row.position += 1
        report = self._release(slots, x)
        report.calls = self._calls
        report.snapshots = self._snapshots(slots, denoised)
        return report

    def _fill_slots(self) -> None:
        free = (slot for slot in range(self.slots) if slot not in self._rows)
        while self._waiting and (slot := next(free, None)) is not None:
            row = self._rows[slot] = self._waiting.popleft()
            self._x[slot] = row.draw().to(self.device)
            self._denoised[slot] = 0
            self._contexts[slot, 0] = row.spec.context
            self._contexts[slot, 1] = row.spec.unconditional

    def _noise(self, rows: Sequence[Row]) -> Tensor:
        """Each row's own fresh noise `[B, C, H, W]`, zeros where it needs none."""
        noise = torch.zeros(len(rows), *self._shape)
        for i, row in enumerate(rows):
            if (fresh := row.fresh_noise()) is not None:
                noise[i] = fresh
        return noise.to(self.device)

    def _predict(self, slots: Sequence[int], rows: Sequence[Row]) -> Tensor:
        """ε of every row, guided where it is to be: `[B, C, H, W]`.

        Conditional and unconditional predictions are just rows of the same micro-batches.
        """
        guided = [i for i, row in enumerate(rows) if row.guided]
        asked = [(i, 0) for i in range(len(rows))] + [(i, 1) for i in guided]
        size = self.micro_batch
        asked += [asked[-1]] * (-len(asked) % size)  # padding
        self._calls = len(asked) // size
        parts = [
            self._forward(slots, rows, asked[at : at + size]) for at in range(0, len(asked), size)
        ]
        predicted = torch.cat(parts)
        eps = predicted[: len(rows)]
        if guided:
            scale = torch.tensor([rows[i].spec.guidance_scale for i in guided], device=self.device)
            unconditional = predicted[len(rows) : len(rows) + len(guided)]
            eps[guided] = guide(eps[guided], unconditional, scale)
        return eps

    def _forward(
        self, slots: Sequence[int], rows: Sequence[Row], asked: Sequence[tuple[int, int]]
    ) -> Tensor:
        """One call of the network with exactly `micro_batch` (row, which context) pairs."""
        at = torch.tensor([slots[i] for i, _ in asked], device=self.device)
        which = torch.tensor([which for _, which in asked], device=self.device)
        timesteps = torch.tensor([rows[i].timestep for i, _ in asked], device=self.device)
        # Indexing copies into fresh memory: alignment, too, is the same for every micro-batch.
        eps: Tensor = self._denoiser(self._x[at], timesteps, self._contexts[at, which])
        return eps

    def _snapshots(self, slots: Sequence[int], denoised: Tensor) -> list[Snapshot]:
        """Of the rows in `slots` that stay and have one due."""
        stay = [(i, self._rows[slot]) for i, slot in enumerate(slots) if slot in self._rows]
        return [
            Snapshot(row.spec.job, row.spec.index, row.position, denoised[i].clone())
            for i, row in stay
            if row.preview_due
        ]

    def _release(self, slots: Sequence[int], x: Tensor) -> StepReport:
        report = StepReport(advanced=len(slots))
        sound = torch.isfinite(x).flatten(1).all(1).tolist()
        for i, slot in enumerate(slots):
            row = self._rows[slot]
            job, index = row.spec.job, row.spec.index
            if not sound[i]:
                reason = f"step {row.position} of {row.spec.steps} gave values that are no numbers"
                report.faults.append(Fault(job, index, reason))
            elif row.done:
                report.finished.append(Finished(job, index, x[i].clone()))
            if row.done or not sound[i]:
                del self._rows[slot]
        return report
