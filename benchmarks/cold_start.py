"""From the start of a worker's process to its first picture, and how often torch's import that is.

Importing torch is what no worker can do without, on the same machine in the same minute.
"""

import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Final

from app.embedded_redis import EmbeddedRedis
from benchmarks.results import Result, interleaved, ratios, result
from benchmarks.sides import Avocat, start_worker
from benchmarks.subject import Plan, executed, mixed

__all__ = ["measure"]

STEPS: Final = 20
DEADLINE_S: Final = 120.0
POLL_S: Final = 0.02


def measure(plan: Plan) -> list[Result]:
    """A worker that starts for the first time, and one that finds what an earlier one has left."""
    executed(plan)  # the choice of a runtime is kept in the plan's data folder
    with _redis(plan) as url:
        sides = {
            "torch": _import_torch,
            "first": lambda: _first_picture(plan, url, new=True),
            "later": lambda: _first_picture(plan, url, new=False),
        }
        found = interleaved(sides, plan.seconds)
    return [
        line
        for name, told in (("first", "empty data folder"), ("later", "as left by an earlier start"))
        for line in (
            result(
                f"worker's start to first picture ÷ importing torch, {told}",
                ratios(found[name], found["torch"]),
                unit="times as long",
                at_least=None,
                command=plan.command,
            ),
            result(
                f"worker's start to first picture, {told}",
                found[name],
                unit="s",
                at_least=None,
                command=plan.command,
            ),
        )
    ]


@contextmanager
def _redis(plan: Plan) -> Iterator[str]:
    server = EmbeddedRedis(plan.settings.data_dir / "redis-cold-start")
    server.start()
    try:
        yield server.url
    finally:
        server.stop()


def _import_torch() -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    return time.perf_counter() - began


def _first_picture(plan: Plan, url: str, *, new: bool) -> float:
    """Seconds until the picture of a job that waits already is stored."""
    with ExitStack() as stack:
        if new:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="avocat-cold-")))
            settings = plan.settings.model_copy(update={"data_dir": folder})
            plan = Plan(plan.seconds, settings, plan.command)
        side = stack.enter_context(closing(Avocat(url, plan)))
        request = mixed(random.Random(1)).model_copy(update={"steps": STEPS})
        job = side.ask(request, time.time())
        began = time.time()
        start_worker(stack, plan, url)
        while (ended := side.ended_at(job)) is None:
            if time.time() > began + DEADLINE_S:
                raise RuntimeError(f"no picture {DEADLINE_S:g} s after the worker's start")
            time.sleep(POLL_S)
        return ended - began
