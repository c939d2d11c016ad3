"""Rows: one row is one picture on its way from noise. No Redis, RQ or HTTP here."""

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

import torch
from torch import Tensor

from models.guidance import acts
from models.model import Adapters, Context, Model, Origin, Shape
from models.samplers import Sampler, Trajectory, columns
from models.sampling import row_generator
from worker.transfers import send

__all__ = ["Row", "RowSpec", "blank_batch", "lone", "parts_of"]

_KEPT: Final = 64  # trajectories, laid out
_ALIGNED: Final = 64  # bytes, as torch's own memory on CPU; else sums may have other last bits


def blank_batch(model: Model, rows: int) -> tuple[Tensor, ...]:
    """Arguments of a call of the denoiser as rows of the native size and one chunk make them."""
    device, size = model.context.device, model.sizes[0]
    given = model.context.conditioning("", None, 1.0, size)
    x = torch.zeros(rows, *model.shape(size), device=device)
    timestep = torch.zeros(rows, dtype=torch.int64, device=device)
    return x, timestep, *(torch.stack([part] * rows).to(device) for part in given.context)


def parts_of(denoiser: Callable[..., Tensor]) -> Callable[[float], int]:
    """Which part of a network a timestep needs (`Denoiser.part`); most are of one."""
    return getattr(denoiser, "part", lambda _: 0)


def lone(denoiser: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """What makes a call that no other is beside, with the same bits: most are the same."""
    found: Callable[..., Tensor] = getattr(denoiser, "lone", denoiser)
    return found


@dataclass(frozen=True, eq=False)
class RowSpec:
    """What to draw.

    `context` and `unconditional` are the prompt's, and that of the empty or the negative prompt.
    Guidance acts from the first to the last share of `guidance_interval`, each in [0, 1] of the
    trajectory. `shape` is that of x_t. A row with an `origin` leaves the first `skipped` of its
    steps out and starts from that picture, noised (SDEdit, Meng et al. 2022); under a mask with
    no step left out, from noise alone.
    """

    job: str  # rows of one token leave together
    index: int  # which picture of the job
    seed: int
    sampler: Sampler
    steps: int
    guidance_scale: float
    guidance_interval: tuple[float, float]
    context: Context
    unconditional: Context
    shape: Shape
    adapters: Adapters | None = None  # LoRAs
    origin: Origin | None = None
    skipped: int = 0
    priority: str = "normal"
    due_s: float = math.inf  # monotonic; from when on it goes before others (app/jobs/order.py)

    @property
    def contexts_match(self) -> bool:
        """Whether one call of the network can take both contexts."""
        pair = zip(self.context, self.unconditional, strict=True)
        return all(ours.shape == theirs.shape for ours, theirs in pair)

    def guided(self, step: int) -> bool:
        """Whether step `step` (0 … steps-1, of all) needs the unconditional prediction too."""
        return self.guidance_scale != 1 and acts(step, self.steps, self.guidance_interval)


class Row:
    """A row in flight: where it is on its trajectory, and its own source of noise.

    `answers` is what the network said for the next step so far, by which of the two contexts;
    `left`, how often it is still to be asked until the picture is done.
    Before `begin` it holds no memory of the device. Then `x` is x_t and `denoised` what its last
    step predicted, both `[1, C, H, W]`, and `contexts` are its two contexts; these and all that is
    of the next step are batches of one, in memory that begins where `_ALIGNED` says, so that a
    lone row is a batch as it stands. `known` is what a mask keeps: x_0, its noise, where it is not
    kept.
    """

    x: Tensor
    denoised: Tensor
    scale: Tensor  # of guidance, `[1]`
    known: tuple[Tensor, Tensor, Tensor] | None
    contexts: tuple[Context, Context]

    def __init__(self, spec: RowSpec, way: Trajectory, denoiser: Callable[..., Tensor]) -> None:
        """`denoiser`: what it is drawn with from its first step to its last."""
        self.spec = spec
        self._way = way
        self.denoiser = denoiser
        self.position = 0  # steps done
        self.previews = 0  # wanted over the whole way
        self.answers: dict[int, Tensor] = {}
        self._telling = threading.Lock()
        self.job = spec.job
        self.tag = 0.0  # for the order of rows (app/jobs/order.py)
        self.due_s = spec.due_s
        self._start = way.start
        self._terms = way.terms
        self._length = len(way)
        self._generator = row_generator(spec.seed)
        steps = range(spec.skipped, spec.skipped + self._length)
        self._guided = [spec.guided(step) for step in steps]
        self.left = self._length + sum(self._guided)
        # Rows of one lane have equal shapes and one network, or all LoRAs beside it.
        shapes = (tuple(part.shape) for part in spec.context)
        self.lane = (id(denoiser), spec.adapters is None, spec.shape, *shapes)
        self._parts = [*map(parts_of(denoiser), way.timesteps.tolist())]

    def anew(self, denoiser: Callable[..., Tensor] | None = None) -> "Row":
        """The same row before its first step, holding no memory of the device."""
        row = Row(self.spec, self._way, denoiser or self.denoiser)
        row.previews, row.tag = self.previews, self.tag
        return row

    def begin(self, device: torch.device) -> None:
        """Take a slot: draw the starting noise, bring everything to the device."""
        self.x = send(self._first(device), device)
        self.denoised = torch.zeros_like(self.x)
        self.scale = send(torch.tensor([self.spec.guidance_scale]), device)
        self.contexts = tuple(  # type: ignore[assignment]  # of two
            tuple(send(_aligned(part), device)[None] for part in context)
            for context in (self.spec.context, self.spec.unconditional)
        )
        self._steps = _laid_out(self._way, device)

    def _first(self, device: torch.device) -> Tensor:
        """x_t of the first step, a batch of one; draws are in the order of diffusers' pipelines."""
        origin, self.known = self.spec.origin, None
        if origin is None:
            return self.draw().mul_(self._start)
        x_0 = origin.mean if origin.std is None else origin.mean + origin.std * self.draw()
        eps = self.draw()
        if origin.mask is not None:
            self.known = send(x_0, device), send(eps, device), send(origin.mask, device)
        if origin.mask is not None and not self.spec.skipped:
            return eps * self._start
        return self._noised(x_0, eps)

    def _noised(self, x_0: Tensor, eps: Tensor) -> Tensor:
        """x_0 with as much noise as the next step begins with; none is left after the last."""
        if self.done:
            return x_0
        signal, noise = self._way.mixture[self.position]
        return signal * x_0 + noise * eps

    def _keep(self, drawn: Tensor) -> Tensor:
        """The known part as it is at this point of the way, the rest as it was `drawn`."""
        if self.known is None:
            return drawn
        x_0, eps, anew = self.known
        return torch.where(anew, drawn, self._noised(x_0, eps))

    @property
    def timestep(self) -> Tensor:
        """The timestep that the network is asked about next, `[1]`."""
        return self._steps.timesteps[self.position]

    @property
    def part(self) -> int:
        """Of the network, that the next step needs."""
        return self._parts[self.position]

    @property
    def coefficients(self) -> Tensor:
        """The sampler's numbers for the next step, float32 `[1, 8]`."""
        return self._steps.coefficients[self.position]

    @property
    def columns(self) -> Sequence[Tensor]:
        """The same as `models.samplers.columns` has them."""
        return self._steps.columns[self.position]

    @property
    def terms(self) -> int:
        """Those of the next step (models/samplers.py)."""
        return self._terms[self.position]

    @property
    def guided(self) -> bool:
        """Whether the next step is guided."""
        return self._guided[self.position]

    @property
    def missing(self) -> list[int]:
        """Contexts about which the network is still to be asked for the next step."""
        return [which for which in range(1 + self.guided) if which not in self.answers]

    def told(self, which: int, answer: Tensor) -> bool:
        """Note what the network said; True for the one who thereby has all for the next step.

        Two threads may tell it of two contexts at a time.
        """
        with self._telling:
            self.answers[which] = answer
            self.left -= 1
            return not self.missing

    def move(self, x: Tensor, denoised: Tensor) -> None:
        """Take the next step, which led to these; what a mask keeps, it keeps."""
        self.answers = {}
        self.position += 1
        self.x, self.denoised = self._keep(x), denoised

    @property
    def done(self) -> bool:
        """Whether the picture is there."""
        return self.position == self._length

    @property
    def seen(self) -> Tensor:
        """What the picture would be if it ended now."""
        if self.known is None:
            return self.denoised
        x_0, _, anew = self.known
        return torch.where(anew, self.denoised, x_0)

    @property
    def preview_due(self) -> bool:
        """Whether the step just done is one of `previews` evenly spread ones; never the last."""
        parts, steps = self.previews + 1, self._length
        now, before = self.position * parts // steps, (self.position - 1) * parts // steps
        return now > before and not self.done

    def draw(self) -> Tensor:
        """Standard normal noise `[1, C, H, W]`, on CPU: the same on every device."""
        return torch.randn(1, *self.spec.shape, generator=self._generator)


class _Steps(NamedTuple):
    """What rows of one trajectory share, by step: see `Row.timestep` and so on."""

    timesteps: Sequence[Tensor]
    coefficients: Sequence[Tensor]
    columns: Sequence[Sequence[Tensor]]


@lru_cache(_KEPT)
def _laid_out(way: Trajectory, device: torch.device) -> _Steps:
    times = way.timesteps
    times = times.float() if times.is_floating_point() else times
    coefficients = _apart(way.coefficients, device)
    return _Steps(_apart(times, device), coefficients, [columns(one) for one in coefficients])


def _apart(table: Tensor, device: torch.device) -> tuple[Tensor, ...]:
    """Its entries as batches of one, each in memory that begins where `_ALIGNED` says."""
    flat = table.reshape(len(table), -1)
    spare = -flat.shape[1] % (_ALIGNED // flat.element_size())
    spread = send(torch.nn.functional.pad(flat, (0, spare)), device)
    return spread[:, : flat.shape[1]].view(table.shape).chunk(len(table))


def _aligned(part: Tensor) -> Tensor:
    """The same, in memory that begins where `_ALIGNED` says: it may be one of many in a batch."""
    return part.clone() if part.data_ptr() % _ALIGNED else part
