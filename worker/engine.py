"""The engine: any mixture of rows, advanced together one denoising step at a time.

A row's result depends neither on its neighbours nor on its place among them: the network sees rows
of one shape in batches of one size, short batches are padded, and all other arithmetic is
elementwise. Rows of other shapes are other lanes of the same step.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from app.jobs.order import in_turn, tag
from models.guidance import guide
from models.model import Adapters, Model
from models.samplers import NOISE, PREVIOUS, step
from worker.memory import ran_out
from worker.rows import Row, RowSpec, blank_batch, parts_of
from worker.streams import Streams

__all__ = ["Engine", "Fault", "Finished", "Snapshot", "StepReport"]

_STAY = 8  # rounds in one part of the network
_ALIGNED = 64  # bytes, as torch's own memory on CPU; at others, sums may have other last bits


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
    calls: int = 0  # of the network, side by side
    asked: int = 0  # rows in those calls
    room: int = 0  # for rows, the rest was padding
    flying: int = 0  # rows that are on their way after it
    shrunk: bool = False  # memory ran out: there are fewer slots now, and all rows began anew
    finished: list[Finished] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    snapshots: list[Snapshot] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class _Round:
    """Calls that are being made: about which context of which rows, and what waits for answers."""

    asked: list[tuple[Row, int]]
    calls: int
    wait: Callable[[], list[Tensor]]


class Engine:
    """Holds up to `slots` rows on the device; rows beyond that wait their turn in order.

    Each step is one round of calls of the network: for the rows whose turn it is by
    app/jobs/order.py, and as many more of their shape as there is room for. Where calls are made
    in other threads, the next round is begun before the answers of the last one are looked at, so
    that no stream waits for Python.

    When memory runs out, it halves its slots and lets all rows begin anew from their seeds, which
    gives the same pictures; so the batches get smaller, too, once there are fewer slots than that.

    Not thread-safe. An exception out of `step` means the device or the network is at fault: no row
    can be trusted any more.
    """

    def __init__(
        self,
        model: Model,
        slots: int,
        micro_batch: int,
        *,
        exact: bool = True,
        smaller: Model | None = None,
        streams: Streams | None = None,
    ) -> None:
        """Hold no row yet.

        Args:
            model: what to draw with.
            slots: rows in flight at most.
            micro_batch: the one batch size the network is called with.
            exact: else that is the largest, short batches are not padded, and the last bits of a
                picture depend on its neighbours.
            streams: where the network is called; one call after the other if None.
            smaller: the model to draw with when batches have to be smaller; the same if None.

        Raises:
            ValueError: `slots` or `micro_batch` below 1.
        """
        if slots < 1 or micro_batch < 1:
            raise ValueError(f"slots {slots!r} and micro_batch {micro_batch!r} must be at least 1")
        self.slots = slots
        self.micro_batch = micro_batch
        self.device = model.context.device
        self._model, self._switches = model, True
        self._exact = exact
        self._smaller = smaller or model
        self._streams = streams or Streams()
        self._rows: list[Row] = []  # with a slot
        self._waiting: deque[Row] = deque()
        self._part, self._stay = 0, 0  # of the network, that calls ask; for how many more rounds
        self._forwards = 0  # so far, padding left out
        self._rounds: deque[_Round] = deque()  # under way

    @property
    def free(self) -> int:
        """Rows that could be admitted and start at once."""
        return max(0, self.slots - len(self._rows) - len(self._waiting))

    @property
    def at_once(self) -> int:
        """Rows that are computed together."""
        return self.micro_batch * self._streams.count

    @property
    def idle(self) -> bool:
        """Whether there is nothing to step."""
        return not self._rows and not self._waiting

    def admit(self, specs: Sequence[RowSpec]) -> None:
        """Take rows in, all or none; they start as slots are free.

        Raises:
            ValueError: a context of the wrong shape, or a trajectory that does not exist.
        """
        rows: list[Row] = []
        for spec in specs:
            self._model.context.check(spec.context)
            self._model.context.check(spec.unconditional)
            if not spec.contexts_match:
                raise ValueError("the contexts of a row must have equal shapes")
            if spec.origin is not None and spec.origin.mean.shape != spec.shape:
                raise ValueError(
                    f"a row of shape {spec.shape} cannot start from {tuple(spec.origin.mean.shape)}"
                )
        for spec in specs:
            way = self._model.trajectory(spec.sampler, spec.steps, spec.skipped)
            rows.append(Row(spec, way, self._model.denoiser))
            rows[-1].tag = tag(self._forwards, spec.priority)
        self._waiting.extend(rows)

    def switch(self, model: Model) -> None:
        """Draw rows that are admitted from now on with the same model in another runtime.

        Those that are here end as they began: a job's pictures are all of one runtime. Nothing
        happens where batches are smaller by now than what it was built for.
        """
        if self._switches:
            self._model = model

    def evict(self, job: str) -> None:
        """Drop all rows of `job`; nothing happens if there are none."""
        self._rows = [row for row in self._rows if row.spec.job != job]
        self._waiting = deque(row for row in self._waiting if row.spec.job != job)

    def preview(self, job: str, count: int) -> None:
        """From now on report `count` snapshots of each row of `job`, spread over its way."""
        for row in (*self._rows, *self._waiting):
            if row.spec.job == job:
                row.previews = count

    def steps_done(self) -> dict[str, int]:
        """Steps done by the rows in flight, summed by job."""
        done: dict[str, int] = {row.spec.job: 0 for row in self._waiting}
        for row in self._rows:
            done[row.spec.job] = done.get(row.spec.job, 0) + row.position
        return done

    @torch.inference_mode()
    def warm_up(self) -> float:
        """Call the network, so that the first job does not pay for what is done only once.

        Returns:
            Seconds of a round of calls after the first.
        """
        x, timestep, *context = blank_batch(self._model, self.micro_batch)
        part, last = parts_of(self._model.denoiser), self._model.schedule.training_length - 1
        ends = [0] if part(0) == part(last) else [0, last]
        times = [torch.full_like(timestep, t) for t in ends]
        began = 0.0
        for _ in range(2):
            began = time.perf_counter()
            for timestep in times:
                every = [(x, timestep, *context)] * self._streams.count
                for out in self._streams.map(self._model.denoiser, every):
                    out.sum().item()  # for a GPU answers before it has computed
        return (time.perf_counter() - began) / len(times)

    @torch.inference_mode()
    def step(self) -> StepReport:
        """The answers to one round of calls; rows that know enough move, the done ones leave."""
        report = StepReport()
        try:
            self._fill_slots()
            rounds = self._next_rounds()
            alone = len(self._rounds) + len(rounds) == 1
            for asked in rounds:
                self._rounds.append(self._begin(asked, here=alone))
            if self._rounds:
                self._end(self._rounds.popleft(), report)
        except Exception as fault:
            if not ran_out(fault) or self.slots == self.micro_batch == 1:
                raise
            report.shrunk = True
        report.room, report.flying = self.at_once, len(self._rows)
        if report.shrunk:  # not while the error is handled, which keeps what was allocated
            self._shrink()
        return report

    def _next_rounds(self) -> list[list[tuple[Row, int]]]:
        """Rows, and about which of their contexts the network is asked, for each round to begin.

        Conditional and unconditional predictions are just rows of the same micro-batches.
        """
        self._rows = in_turn(self._rows, self._waiting, time.monotonic())
        busy = {id(row) for one in self._rounds for row, _ in one.asked}
        rounds: list[list[tuple[Row, int]]] = []
        while len(self._rounds) + len(rounds) < (2 if self._streams.count > 1 else 1):
            ready = [row for row in self._rows if id(row) not in busy]
            if not ready:
                break
            calls = ((row, which) for row in self._alike(ready) for which in row.missing)
            asked = list(islice(calls, self.at_once))
            busy |= {id(row) for row, _ in asked}
            rounds.append(asked)
        return rounds

    def _alike(self, ready: Sequence[Row]) -> list[Row]:
        """Those that one call of the network takes: the first, and others of its lane and part.

        The part of the last rounds is kept for some more, for two parts by turns would push each
        other's weights out of the processor's cache.
        """
        lane = [row for row in ready if row.lane == ready[0].lane]
        if self._stay == 0 or all(row.part != self._part for row in lane):
            self._part, self._stay = lane[0].part, _STAY
        self._stay -= 1
        return [row for row in lane if row.part == self._part]

    def _begin(self, asked: list[tuple[Row, int]], *, here: bool) -> _Round:
        """Ask the network about rows of one lane; `here`: with this thread's help."""
        size, batches = self.micro_batch, list(asked)
        if self._exact:
            batches += [batches[-1]] * (-len(batches) % size)  # padding
        calls = [self._batch(batches[at : at + size]) for at in range(0, len(batches), size)]
        self._forwards += len(asked)
        wait = self._streams.start(partial(_call, asked[0][0].denoiser), calls, here=here)
        return _Round(asked, len(calls), wait)

    def _end(self, one: _Round, report: StepReport) -> None:
        """Give rows their answers, and move those that have all; others were evicted meanwhile."""
        report.calls, report.asked = one.calls, len(one.asked)
        answers = (answer for part in one.wait() for answer in part.chunk(len(part)))
        for (row, which), answer in zip(one.asked, answers, strict=False):
            row.answers[which] = answer
        here = {id(row) for row in self._rows}
        rows = {id(row): row for row, _ in one.asked}
        self._advance([row for at, row in rows.items() if at in here and not row.missing], report)

    def _fill_slots(self) -> None:
        while self._waiting and len(self._rows) < self.slots:
            self._rows.append(self._waiting.popleft())
            self._rows[-1].begin(self.device)

    def _shrink(self) -> None:
        for one in self._rounds:
            with suppress(Exception):  # they may have had no room either
                one.wait()
        self._rounds.clear()
        self.slots = max(1, self.slots // 2)
        other = None
        if self.slots < self.micro_batch:
            self.micro_batch, self._model, self._switches = self.slots, self._smaller, False
            other = self._model.denoiser
            self._waiting = deque(row.anew(other) for row in self._waiting)
        self._waiting.extendleft([row.anew(other) for row in reversed(self._rows)])
        self._rows = []
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _advance(self, ready: Sequence[Row], report: StepReport) -> None:
        """Take rows of one lane, for which all answers are there, one step on."""
        if not ready:
            return
        predicted = self._predicted(ready)
        terms = 0
        for row in ready:
            terms |= row.terms
        x, denoised = step(
            _together([row.x for row in ready]),
            predicted,
            _together([row.denoised for row in ready]) if terms & PREVIOUS else None,
            self._noise(ready) if terms & NOISE else None,
            _together([row.coefficients for row in ready]),
            self._model.clip,
            terms,
        )
        for row, moved, seen in zip(ready, x.chunk(len(x)), denoised.chunk(len(x)), strict=True):
            row.move(moved, seen)
        report.advanced += len(ready)
        self._release(ready, predicted, report)

    def _noise(self, rows: Sequence[Row]) -> Tensor:
        """Each row's own fresh noise `[B, C, H, W]`, zeros where it needs none."""
        none = torch.zeros(rows[0].spec.shape)
        drawn = [row.draw() if row.terms & NOISE else none for row in rows]
        return (drawn[0][None] if len(rows) == 1 else torch.stack(drawn)).to(self.device)

    def _predicted(self, rows: Sequence[Row]) -> Tensor:
        """What the network said of rows, guided where they are to be: `[B, C, H, W]`."""
        out = _together([row.answers[0] for row in rows])
        guided = [i for i, row in enumerate(rows) if row.guided]
        if not guided:
            return out
        scale = _together([rows[i].scale for i in guided])
        unconditional = _together([rows[i].answers[1] for i in guided])
        if len(guided) == len(rows):
            return guide(out, unconditional, scale)
        at = torch.tensor(guided, device=self.device)
        return out.index_copy_(0, at, guide(out.index_select(0, at), unconditional, scale))

    def _batch(self, asked: Sequence[tuple[Row, int]]) -> tuple[Any, ...]:
        """The arguments of one call of the network with these (row, which context) pairs."""
        adapters = [row.spec.adapters for row, _ in asked]
        adapters = adapters if any(adapters) else []
        x = _together([row.x for row, _ in asked])
        timesteps = _together([row.timestep for row, _ in asked])
        contexts = zip(*(row.contexts[which] for row, which in asked), strict=True)
        return adapters, x, timesteps, *(_together(parts) for parts in contexts)

    def _release(self, rows: Sequence[Row], predicted: Tensor, report: StepReport) -> None:
        """Let go of the rows that are done or broken; show those that are to be shown."""
        # One number that is none makes the sum none.
        sound = [math.isfinite(total) for total in predicted.flatten(1).sum(1).tolist()]
        told = StepReport()  # not yet `report`: a copy may have no room, and all rows begin anew
        for i, row in enumerate(rows):
            job, index = row.spec.job, row.spec.index
            if not sound[i]:
                at = row.spec.skipped + row.position
                reason = f"step {at} of {row.spec.steps} gave values that are no numbers"
                told.faults.append(Fault(job, index, reason))
            elif row.done:
                told.finished.append(Finished(job, index, row.x[0].clone()))
            elif row.preview_due:
                told.snapshots.append(Snapshot(job, index, row.position, row.seen[0].clone()))
        report.faults, report.finished = told.faults, told.finished
        report.snapshots = told.snapshots
        gone = {id(row) for i, row in enumerate(rows) if row.done or not sound[i]}
        if gone:
            self._rows = [row for row in self._rows if id(row) not in gone]


def _together(parts: Sequence[Tensor]) -> Tensor:
    """One batch of batches, in memory that is aligned alike for every batch of that size."""
    if len(parts) == 1 and parts[0].data_ptr() % _ALIGNED == 0:
        return parts[0]
    return torch.cat(list(parts))


def _call(
    denoiser: Callable[..., Tensor], adapters: Sequence[Adapters | None], *batch: Tensor
) -> Tensor:
    """Ask the network; `adapters` are those of each row, where one of them has any."""
    return denoiser(*batch, adapters=adapters) if adapters else denoiser(*batch)
