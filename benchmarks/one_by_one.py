"""The peer most people would build first: a stock RQ worker that draws one job after the other.

It has the same network, in the runtime that is the fastest here for its batches of one row, and the
plain sampling loop. `SimpleWorker` runs jobs in its own process, so nothing is loaded twice.
"""

import time
from io import BytesIO
from pathlib import Path
from typing import Final

import structlog
import torch
from redis import Redis
from rq import Queue, SimpleWorker
from rq.job import Job
from rq.serializers import JSONSerializer

from app.jobs.record import JobRequest
from benchmarks.subject import Plan, executed
from models.bundle import Bundle
from models.pictures import to_picture
from models.sampling import sample

__all__ = ["QUEUE", "ask", "ended_at", "paint", "serve"]

QUEUE: Final = "one-by-one"
_studio: list[tuple[Bundle, Path]] = []  # of this process: RQ passes nothing but arguments


def serve(plan: Plan, url: str, folder: Path, burst: bool = False) -> None:
    """Work until the process is ended or, with `burst`, the queue is empty."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    folder.mkdir(parents=True, exist_ok=True)
    bundle, chosen = executed(plan, rows=1)
    # Beside another runtime's threads those of torch would spin: a sixth of the time here.
    torch.set_num_threads(plan.threads if chosen.name in ("eager", "compile") else 1)
    _studio[:] = [(bundle, folder)]
    redis = Redis.from_url(url)
    worker = SimpleWorker(
        [Queue(QUEUE, connection=redis, serializer=JSONSerializer)],
        connection=redis,
        serializer=JSONSerializer,
    )
    worker.work(burst=burst, logging_level="ERROR")


def ask(redis: Redis, request: JobRequest) -> str:
    """Put a job into the peer's queue; its id."""
    queue = Queue(QUEUE, connection=redis, serializer=JSONSerializer)
    job = queue.enqueue("benchmarks.one_by_one.paint", request.model_dump_json(), job_timeout=600)
    return str(job.id)


def ended_at(redis: Redis, job_id: str) -> float | None:
    """When the picture was stored, in unix seconds; None if it is not.

    Raises:
        RuntimeError: the job failed.
    """
    job = Job.fetch(job_id, connection=redis, serializer=JSONSerializer)
    if job.is_failed:
        raise RuntimeError(f"the peer's job failed: {job.latest_result()}")
    return float(str(job.return_value())) if job.is_finished else None


def paint(text: str) -> float:
    """Draw a job and store it as PNG; the unix time of its end."""
    [(bundle, folder)] = _studio
    request = JobRequest.model_validate_json(text)
    side = bundle.config.image_size
    [picture] = sample(
        bundle.denoiser,
        bundle.schedule,
        bundle.context.encode([request.prompt]),
        bundle.context.empty,
        [request.seed],
        (bundle.config.channels, side, side),
        sampler=request.sampler,
        steps=request.steps,
        guidance_scale=request.guidance_scale,
        parameterisation=bundle.config.parameterisation,
    )
    out = BytesIO()
    to_picture(picture).save(out, "PNG")
    (folder / f"{request.seed}.png").write_bytes(out.getvalue())
    return time.time()
