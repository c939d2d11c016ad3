"""Job records to rows: prompts to contexts, sizes to shapes."""

import math
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from PIL import Image

from app.jobs.record import JobRecord, JobRequest
from app.jobs.scene import MOST_LAYERS
from models.model import Adapters, Conditioning, Context, Model
from models.sampling import layer_seed
from worker.loras import Loras
from worker.memory import ran_out
from worker.rows import RowSpec

__all__ = ["MOST_ROWS", "Order", "Prompts"]

_MOST_PICTURES = 8  # of one job
MOST_ROWS = _MOST_PICTURES * MOST_LAYERS


@dataclass(frozen=True, eq=False)
class Order:
    """A job as the engine and the results need it.

    Each picture is one row, or those of the layers of its scene, which follow one another.
    """

    rows: tuple[RowSpec, ...]
    size: tuple[int, int]  # of the pictures, in pixels
    seeds: tuple[int, ...]  # of the pictures
    warnings: tuple[str, ...]

    @property
    def layers(self) -> int:
        """Rows of each picture."""
        return len(self.rows) // len(self.seeds)

    def rows_of(self, picture: int) -> range:
        """The indices of a picture's rows."""
        return range(picture * self.layers, (picture + 1) * self.layers)


class Prompts:
    """The model's CLIP, for several threads: encodes prompts, scores pictures."""

    def __init__(self, model: Model, loras: Loras | None = None) -> None:
        self._model = model
        self._loras = loras or Loras(model, None)
        self._lock = threading.Lock()  # the encoder's cache is not made for threads

    def order(self, record: JobRecord, token: str, due_s: float = math.inf) -> Order:
        """The rows of a job, seeds counting up, under one token; `due_s`: see `RowSpec`.

        Raises:
            ValueError: the model cannot draw this; the message is for the job's owner.
            Exception: there was no memory to read it (`ran_out`).
        """
        request = record.request
        count = request.pictures
        if not 1 <= count <= _MOST_PICTURES:
            raise ValueError(f"n is {count!r}; it should be from 1 to {_MOST_PICTURES}")
        longest = self._model.schedule.training_length
        if not 1 <= request.steps <= longest:
            raise ValueError(f"steps is {request.steps!r}; it should be from 1 to {longest}")
        skipped = request.steps - request.taken
        self._model.trajectory(request.sampler, request.steps, skipped)  # lcm has fewer than others
        size = (request.width, request.height)
        shape = self._model.shape(size)
        adapters = self._loras.adapters(request.lora)
        painted = [self._conditioning(request, one, adapters) for one in request.texts]
        seeds = tuple(request.seed + i for i in range(count))
        rows = tuple(
            RowSpec(
                job=token, index=i * len(painted) + layer, seed=layer_seed(seed, layer),
                sampler=request.sampler,
                steps=request.steps, guidance_scale=given.guidance_scale,
                guidance_interval=request.guidance_interval,
                context=given.context, unconditional=given.unconditional, shape=shape,
                adapters=adapters, priority=request.priority, due_s=due_s,
            )
            for i, seed in enumerate(seeds) for layer, given in enumerate(painted)
        )  # fmt: skip
        return Order(rows, size, seeds, self._warnings(request))

    def prepare(self, requests: Sequence[JobRequest]) -> None:
        """Read the prompts of jobs that are about to be ordered, where that takes fewer calls.

        What cannot be read is left to `order`, which says so.
        """
        if self._model.context.text_rows == 1 or len(requests) < 2:
            return
        with suppress(Exception), self._lock:
            self._model.context.prepare(
                [
                    (text, one.negative_prompt, self._loras.adapters(one.lora))
                    for one in requests
                    for text in one.texts
                ]
            )

    def seen(self, picture: Image.Image) -> Context | None:
        """The picture in place of a prompt; None when the model's CLIP sees no pictures."""
        see = getattr(self._model.context, "see", None)
        if see is None:
            return None
        with self._lock:
            context: Context = see(picture)
            return context

    def score(self, picture: Image.Image, prompt: str) -> float | None:
        """CLIP's cosine of picture and prompt; None without one, or where CLIP sees no pictures."""
        score = getattr(self._model.context, "score", None)
        if score is None or not prompt:
            return None
        with self._lock:
            return round(float(score(picture, prompt)), 4)

    def _conditioning(
        self, request: JobRequest, prompt: str, adapters: Adapters | None
    ) -> Conditioning:
        try:
            with self._lock:
                return self._model.context.conditioning(
                    prompt,
                    request.negative_prompt,
                    request.guidance_scale,
                    (request.width, request.height),
                    adapters,
                )
        except Exception as fault:  # tokenizers raise many kinds; none is the worker's end
            if ran_out(fault):  # which is no fault of the prompt
                raise
            raise ValueError(f"the prompt cannot be read: {type(fault).__name__}") from fault

    def _warnings(self, request: JobRequest) -> tuple[str, ...]:
        context = self._model.context
        texts = {"prompt": request.texts, "negative_prompt": (request.negative_prompt or "",)}
        found = [
            f"{name} is longer than the {context.context_length} tokens that the model reads: "
            "its end was ignored"
            for name, parts in texts.items()
            if any(map(context.is_truncated, parts))
        ]
        if request.best_of > request.n and not hasattr(context, "score"):
            found.append(
                "best_of: the model's CLIP sees no pictures, so the first candidates were kept"
            )
        return tuple(found)
