"""Job records to rows: prompts to contexts, sizes to upscale factors."""

import threading
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from app.jobs.record import JobRecord, JobRequest
from models.bundle import Bundle
from worker.rows import RowSpec

__all__ = ["MOST_PICTURES", "Order", "Prompts"]

MOST_PICTURES = 8  # of one job


@dataclass(frozen=True, eq=False)
class Order:
    """A job as the engine and the results need it."""

    rows: tuple[RowSpec, ...]
    factor: int  # of the native size
    warnings: tuple[str, ...]


class Prompts:
    """The bundle's CLIP, for several threads: encodes prompts, scores pictures."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._lock = threading.Lock()  # the encoder's cache is not made for threads

    def order(self, record: JobRecord, token: str) -> Order:
        """The rows of a job, seeds counting up, under one token.

        Raises:
            ValueError: the model cannot draw this; the message is for the job's owner.
        """
        request = record.request
        count = max(request.n, request.best_of)
        if not 1 <= count <= MOST_PICTURES:
            raise ValueError(f"n is {count!r}; it should be from 1 to {MOST_PICTURES}")
        longest = self._bundle.schedule.training_length
        if not 1 <= request.steps <= longest:
            raise ValueError(f"steps is {request.steps!r}; it should be from 1 to {longest}")
        factor = self._factor(request)
        context = self._context(request.prompt)
        unconditional = self._context(request.negative_prompt or "")
        rows = tuple(
            RowSpec(
                job=token, index=i, seed=request.seed + i, sampler=request.sampler,
                steps=request.steps, guidance_scale=request.guidance_scale,
                guidance_interval=request.guidance_interval,
                context=context, unconditional=unconditional,
            )
            for i in range(count)
        )  # fmt: skip
        return Order(rows, factor, self._warnings(request))

    def score(self, picture: Image.Image, prompt: str) -> float | None:
        """CLIP's cosine of picture and prompt; None when the bundle's CLIP sees no pictures."""
        score = getattr(self._bundle.context, "score", None)
        if score is None:
            return None
        with self._lock:
            return round(float(score(picture, prompt)), 4)

    def _context(self, prompt: str) -> Tensor:
        try:
            with self._lock:
                return self._bundle.context.encode([prompt])[0]
        except Exception as fault:  # tokenizers raise many kinds; none is the worker's end
            raise ValueError(f"the prompt cannot be read: {type(fault).__name__}") from fault

    def _factor(self, request: JobRequest) -> int:
        side = self._bundle.config.image_size
        for factor in self._bundle.config.upscales:
            if request.size == f"{side * factor}x{side * factor}":
                return factor
        sizes = ", ".join(f"{side * f}x{side * f}" for f in self._bundle.config.upscales)
        raise ValueError(f"size is {request.size!r}; this model draws {sizes}")

    def _warnings(self, request: JobRequest) -> tuple[str, ...]:
        context = self._bundle.context
        texts = {"prompt": request.prompt, "negative_prompt": request.negative_prompt or ""}
        return tuple(
            f"{name} is longer than the {context.context_length} tokens that the model reads: "
            "its end was ignored"
            for name, text in texts.items()
            if context.is_truncated(text)
        )
