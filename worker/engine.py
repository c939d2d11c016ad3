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
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from app.jobs.order import in_turn, tag
from models.model import Model
from worker.batches import Stepped, answer
from worker.memory import ran_out
from worker.reports import Fault, Finished, Snapshot, StepReport
from worker.rows import Row, RowSpec, blank_batch, lone, parts_of
from worker.streams import Streams
from worker.transfers import fetch, reached

__all__ = ["Engine"]

_STAY = 8  # rounds in one part of the network
_AHEAD = 2  # rounds that a GPU is asked for before the first of them is looked at


@dataclass(frozen=True, eq=False)
class _Round:
    """Calls that are being made: about which context of which rows, and what waits for them."""

    asked: list[tuple[Row, int]]
    calls: int
    wait: Callable[[], list[Stepped | None]]


@dataclass(eq=False)
class _Moved:
    """Rows that took a step, and what is to be told of each once `totals` say that it is sound.

    On a GPU nothing of that is there before `wait`, but the next round may be under way.
    """

    rows: list[tuple[Row, int, Finished | Snapshot | None]]  # which step it was
    totals: list[Tensor]
    wait: Callable[[], None]
    calls: int
    asked: int
    dropped: set[int]  # ids of rows that left meanwhile


class Engine:
    """Holds up to `slots` rows on the device; rows beyond that wait their turn in order.

    Each step is one round of calls of the network: for the rows whose turn it is by
    app/jobs/order.py, and as many more of their shape as there is room for. Where calls are made
    in other threads, or by a GPU, the next round is begun before the answers of the last one are
    looked at, so that none waits for Python.

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
        self._moved: deque[_Moved] = deque()  # not looked at
        self._ahead = _AHEAD if self.device.type == "cuda" else 1

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
        return not self._rows and not self._waiting and not self._moved

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
        for moved in self._moved:
            moved.dropped |= {id(row) for row, *_ in moved.rows if row.job == job}

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
        if (alone := lone(self._model.denoiser)) is not self._model.denoiser:
            for timestep in 2 * times:
                alone(x, timestep, *context)
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
            while len(self._moved) < self._ahead and self._take_round():
                pass
        except Exception as fault:
            if not ran_out(fault) or self.slots == self.micro_batch == 1:
                raise
            report.shrunk = True
        if report.shrunk:  # not while the error is handled, which keeps what was allocated
            self._shrink(report)
        elif self._moved:
            self._look(self._moved.popleft(), report)
        report.room, report.flying = self.at_once, len(self._rows)
        return report

    def _take_round(self) -> bool:
        """Begin what can be begun, and move the rows of the oldest round, if there is one."""
        self._fill_slots()
        rounds = self._next_rounds()
        alone = len(self._rounds) + len(rounds) == 1
        for asked in rounds:
            self._rounds.append(self._begin(asked, here=alone))
        if self._rounds:
            self._moved.append(self._end(self._rounds.popleft()))
            return True
        return False

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
        """Ask the network about rows of one lane; `here`: nobody else is, and this thread helps."""
        size = self.micro_batch
        calls = [asked[at : at + size] for at in range(0, len(asked), size)]
        padded, alone = size if self._exact else 0, here and len(calls) == 1 < self._streams.count
        parts = [(call, padded, self._model.clip, alone) for call in calls]
        self._forwards += len(asked)
        return _Round(asked, len(calls), self._streams.start(answer, parts, here=here))

    def _end(self, one: _Round) -> _Moved:
        """Move the rows that know enough; others were evicted meanwhile."""
        ended = [stepped for stepped in one.wait() if stepped is not None]
        here = {id(row) for row in self._rows}
        told: list[tuple[Row, int, Finished | Snapshot | None]] = []
        dropped: set[int] = set()
        for stepped in ended:
            for row, x, denoised in stepped.each():
                if id(row) in here:
                    row.move(x, denoised)
                    told.append((row, row.spec.skipped + row.position, _shown(row)))
                else:
                    told.append((row, 0, None))
                    dropped.add(id(row))
        if any(row.done for row, *_ in told):
            self._rows = [row for row in self._rows if not row.done]
        totals = [stepped.totals for stepped in ended]
        return _Moved(told, totals, reached(self.device), one.calls, len(one.asked), dropped)

    def _fill_slots(self) -> None:
        while self._waiting and len(self._rows) < self.slots:
            self._rows.append(self._waiting.popleft())
            self._rows[-1].begin(self.device)

    def _shrink(self, report: StepReport) -> None:
        while self._moved:  # what was drawn before
            self._look(self._moved.popleft(), report)
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

    def _look(self, moved: _Moved, report: StepReport) -> None:
        """Tell which rows are done, and what is to be shown; let go of those that are broken."""
        moved.wait()
        report.calls += moved.calls
        report.asked += moved.asked
        broken: set[int] = set()
        totals = (total for part in moved.totals for total in part.tolist())
        for (row, at, shown), total in zip(moved.rows, totals, strict=True):
            if id(row) in moved.dropped:
                continue
            report.advanced += 1
            if not math.isfinite(total):
                broken.add(id(row))
                reason = f"step {at} of {row.spec.steps} gave values that are no numbers"
                report.faults.append(Fault(row.job, row.spec.index, reason))
            elif isinstance(shown, Finished):
                report.finished.append(shown)
            elif shown is not None:
                report.snapshots.append(shown)
        if broken:
            self._rows = [row for row in self._rows if id(row) not in broken]
            for later in self._moved:
                later.dropped |= broken


def _shown(row: Row) -> Finished | Snapshot | None:
    """What is told of a row that has moved."""
    if row.done:
        return Finished(row.job, row.spec.index, fetch(row.x[0]))
    if row.preview_due:
        return Snapshot(row.job, row.spec.index, row.position, fetch(row.seen[0]))
    return None
