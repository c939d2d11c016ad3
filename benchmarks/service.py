"""The whole service, HTTP in and PNG out, by its own client, against the bare engine."""

import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from operator import itemgetter
from typing import Any, Final

from app.client import Avocat
from app.commands.own_service import own_service
from app.jobs.record import JobRequest
from benchmarks.results import Result, interleaved, ratios, result
from benchmarks.subject import Plan, engine_of, engine_threads, executed, mixed, row_specs
from models.bundle import Bundle

__all__ = ["bodies", "measure", "service_settings"]

ROUND_S: Final = 10.0  # of work for each side
SMALLEST, LARGEST = 4, 200  # jobs in a round; fewer than one key may have active
MOST_IMAGES = 2
ASKING = 4  # connections that submit


def measure(plan: Plan) -> list[Result]:
    """Jobs a second of the service ÷ those of the engine, all jobs there from the start."""
    bundle, chosen = executed(plan)
    requests = _requests(plan, bundle)
    pictures = sum(request.n for request in requests)
    with (
        service_settings(plan, chosen.name),
        own_service() as url,
        Avocat(url) as client,
    ):
        through_http(client, requests[:1])  # what is done only once
        sides = {
            "service": lambda: through_http(client, requests),
            "engine": _bare(plan, bundle, requests),
        }
        found = interleaved(sides, plan.seconds)
    return [
        result(
            f"whole service ÷ bare engine, {len(requests)} mixed jobs at once",
            ratios(found["engine"], found["service"]),
            unit="share",
            at_least=0.95,
            command=plan.command,
        ),
        result(
            "pictures through the service, mixed jobs of 10 to 50 steps",
            [pictures / seconds for seconds in found["service"]],
            unit="pictures/s",
            at_least=None,
            command=plan.command,
        ),
    ]


def _requests(plan: Plan, bundle: Bundle) -> list[JobRequest]:
    """As many jobs as keep the engine busy for a round, by the time of a few."""
    dice = random.Random(5)
    requests = [mixed(dice, most_images=MOST_IMAGES) for _ in range(LARGEST)]
    few = requests[:SMALLEST]
    seconds = _bare(plan, bundle, few)()
    rounds_s = min(ROUND_S, plan.seconds / 8)
    return requests[: min(LARGEST, max(SMALLEST, round(SMALLEST * rounds_s / seconds)))]


def _bare(plan: Plan, bundle: Bundle, requests: Sequence[JobRequest]) -> Callable[[], float]:
    @engine_threads(plan)
    def run() -> float:
        began = time.perf_counter()
        engine = engine_of(plan, bundle)
        for number, request in enumerate(requests):
            engine.admit(row_specs(bundle, request, f"{number}"))
        while not engine.idle:
            engine.step()
        return time.perf_counter() - began

    return run


def through_http(client: Avocat, requests: Sequence[JobRequest]) -> float:
    """Seconds from the first submission until the last image is here."""
    began = time.perf_counter()
    with ThreadPoolExecutor(ASKING) as pool:
        jobs = list(pool.map(lambda fields: client.submit(**fields), bodies(requests)))
    # One after the other, for the client is to need the processor as little as can be; the least
    # work first, as they end, for what has ended long ago is else fetched while the engine idles.
    work = [request.rows * request.forwards for request in requests]
    for _, job in sorted(zip(work, jobs, strict=True), key=itemgetter(0)):
        for image in client.wait(job).images:
            client.download(image)
    return time.perf_counter() - began


def bodies(requests: Sequence[JobRequest]) -> Iterator[dict[str, Any]]:
    """The requests as a client sends them, in the default model and its native size."""
    fields = {
        "prompt",
        "n",
        "seed",
        "steps",
        "sampler",
        "guidance_scale",
        "guidance_interval",
        "cache",
    }
    for request in requests:
        yield request.model_dump(include=fields)


@contextmanager
def service_settings(plan: Plan, runtime: str) -> Iterator[None]:
    """The service reads its settings from the environment: those of the plan, the same runtime."""
    named = ("bundle", "device", "slots", "micro_batch", "threads")
    values = {name: getattr(plan.settings, name) for name in named} | {"runtime": runtime}
    given = {f"AVOCAT_{name.upper()}": str(value) for name, value in values.items()}
    before = dict(os.environ)
    os.environ.update(given)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
