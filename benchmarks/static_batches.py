"""The peer that waits for the batch: LitServe's own batching loop over Avocat's engine.

Only the loop is taken, without its HTTP server: what differs from Avocat is when rows may start and
leave. A static batch keeps its shape until its longest row has ended: the others are carried along
(Yu et al. 2022, Orca, section 3), and nothing leaves before.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from queue import Queue
from typing import Any, Final, Protocol

import structlog
import torch
from litserve import LitAPI
from litserve.callbacks import CallbackRunner
from litserve.loops.simple_loops import BatchedLoop

from app.jobs.record import JobRequest
from benchmarks.subject import Plan, engine_of, executed, row_specs
from models.bundle import Bundle
from models.pictures import to_picture
from worker.engine import Engine
from worker.rows import RowSpec

__all__ = ["BATCH_TIMEOUT_S", "MOST", "STOP", "Answers", "draw_batch", "run", "serve"]

MOST: Final = 16  # jobs in a batch
BATCH_TIMEOUT_S: Final = 0.05  # that a batch waits for more, as LitServe's examples have it
STOP: Final = (None, None, None, None)  # LitServe's own mark of the end


class Answers(Protocol):
    """Takes (job, unix time of its end): a queue of this process or of another one."""

    def put(self, answer: tuple[str, float]) -> None:
        """Pass an answer on."""


class _Painter(LitAPI):  # type: ignore[misc]
    """Draws a batch of jobs in one go and stores the pictures as PNG."""

    def __init__(self, bundle: Bundle, plan: Plan, folder: Path) -> None:
        super().__init__(max_batch_size=MOST, batch_timeout=BATCH_TIMEOUT_S, loop=BatchedLoop())
        self.request_timeout = -1
        self._bundle = bundle
        self._plan = plan
        self._folder = folder

    def decode_request(self, request: str, **_: Any) -> JobRequest:
        """Read a job from JSON."""
        return JobRequest.model_validate_json(request)

    def predict(self, batch: Sequence[JobRequest], **_: Any) -> list[tuple[int, torch.Tensor]]:
        """Seed and picture of each job, when all are done."""
        engine = engine_of(self._plan, self._bundle, len(batch))
        rows = {
            f"{number}": row_specs(self._bundle, request, f"{number}")[0]
            for number, request in enumerate(batch)
        }
        pictures = draw_batch(engine, rows)
        return [(request.seed, pictures[f"{at}"]) for at, request in enumerate(batch)]

    def encode_response(self, output: tuple[int, torch.Tensor], **_: Any) -> bool:
        """Store the picture."""
        seed, picture = output
        out = BytesIO()
        to_picture(picture).save(out, "PNG")
        (self._folder / f"{seed}.png").write_bytes(out.getvalue())
        return True


def draw_batch(engine: Engine, rows: Mapping[str, RowSpec]) -> dict[str, torch.Tensor]:
    """What rows gave, by job, once the longest has ended; the others are carried along."""
    engine.admit(list(rows.values()))
    longest = max(row.steps for row in rows.values())
    pictures: dict[str, torch.Tensor] = {}
    while not engine.idle:
        for finished in engine.step().finished:
            if (row := rows.get(finished.job)) is None:
                continue
            pictures[finished.job] = finished.picture
            if row.steps < longest:
                engine.admit([replace(row, job="carried along", steps=longest - row.steps)])
    return pictures


class _Transport:
    """What the loop sends its answers through."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers

    def send(self, item: tuple[str, tuple[Any, ...]], consumer_id: int) -> None:
        """Pass on which job has ended.

        Raises:
            SystemExit: it failed; the one who waits for it notices that this process is gone.
        """
        job, (data, *_) = item
        if data is not True:
            raise SystemExit(f"the static batch failed: {data!r}")
        self._answers.put((job, time.time()))


def serve(plan: Plan, asked: "Queue[Any]", answers: Answers, folder: Path) -> None:
    """Load everything and work until `STOP` is asked for."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    torch.set_num_threads(plan.streams.threads)  # as the engine's own thread has them
    run(executed(plan)[0], plan, asked, answers, folder)


def run(bundle: Bundle, plan: Plan, asked: "Queue[Any]", answers: Answers, folder: Path) -> None:
    """Work until `STOP` is asked for; a job is (0, id, time, its request as JSON)."""
    folder.mkdir(parents=True, exist_ok=True)
    painter = _Painter(bundle, plan, folder)
    painter.pre_setup()
    BatchedLoop().run_batched_loop(painter, asked, _Transport(answers), CallbackRunner())
