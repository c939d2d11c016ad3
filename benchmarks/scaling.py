"""How throughput and latency grow: `python -m benchmarks.scaling workers|api [NUMBER …]`.

Workers have a device that sleeps (`benchmarks.fake_device`), so what is measured is all but the
network. Each line also has what `benchmarks.capacity` predicts for the very same arrivals.
"""

import argparse
import asyncio
import json
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

from redis import Redis

from app import keys
from app.commands.programs import environment, program
from app.embedded_redis import EmbeddedRedis, tied_to_parent
from app.jobs.connection import connect
from app.jobs.forecast import Engine
from app.settings import Settings
from benchmarks.arrivals import Arrival, arrivals, at_once
from benchmarks.capacity import capacity, simulate
from benchmarks.fake_device import CALL_S
from benchmarks.load import latencies
from benchmarks.sides import Avocat
from benchmarks.subject import Plan, loaded
from benchmarks.submission import post_for, serving
from worker.card import announce, model_card

__all__ = ["measure_api", "measure_workers"]

ENGINE: Final = Engine(slots=16, micro_batch=16, seconds_per_call=0.06)
BUSY: Final = 0.8  # of the capacity
START_S: Final = 120.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print one JSON line for each number."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("what", choices=["workers", "api"])
    parser.add_argument("numbers", nargs="*", type=int, default=[1, 2, 3, 4])
    parser.add_argument("--seconds", type=float, default=20.0, help="of load for each number")
    options = parser.parse_args(arguments)
    measure = measure_workers if options.what == "workers" else measure_api
    for number in options.numbers:
        print(json.dumps(measure(number, options.seconds)), flush=True)
    return 0


def measure_workers(number: int, seconds: float, engine: Engine = ENGINE) -> dict[str, Any]:
    """A burst for the throughput, then a Poisson load for the latencies and Redis' commands."""
    dice = random.Random(number)
    with _plan(engine) as plan, ExitStack() as stack:
        server = EmbeddedRedis(plan.settings.data_dir / "redis")
        server.start()
        stack.callback(server.stop)
        redis = stack.enter_context(connect(server.url))
        for _ in range(number):
            _start_worker(stack, plan, server.url, engine)
        _wait_for_workers(redis, number)
        side = stack.enter_context(closing(Avocat(server.url, plan)))
        lone = at_once(dice, 1)
        overhead_s = statistics.median(
            latencies(side, lone)[0] - simulate(engine, 1, lone)[0] for _ in range(3)
        )
        most = number * capacity(engine, arrivals(dice, 1.0, 1000.0))
        burst = at_once(dice, max(1, round(most * seconds / 2)))
        took = max(latencies(side, burst))
        engine = replace(engine, seconds_per_call=_seconds_per_call(redis))
        jobs = arrivals(dice, BUSY * most, seconds)
        found = sorted(latencies(side, jobs))
        cost = _cost_in_redis(redis, side, burst)
        told = sorted(simulate(engine, number, jobs, overhead_s))
    return {
        "workers": number,
        "ms_per_call": round(1000 * engine.seconds_per_call, 1),
        "jobs_per_s": round(len(burst) / took, 2),
        "predicted_jobs_per_s": round(len(burst) / max(simulate(engine, number, burst)), 2),
        "load_jobs_per_s": round(len(jobs) / jobs[-1].at_s, 2),
        "jobs": len(jobs),
        **_quantiles("", found),
        **_quantiles("predicted_", told),
        "overhead_s": round(overhead_s, 3),
        **cost,
    }


def _seconds_per_call(redis: Redis) -> float:
    """What the workers say that a call costs, all around it included: as the API's estimates."""
    told = [
        json.loads(value)["seconds_per_call"]
        for worker in redis.smembers(keys.RQ_WORKERS)
        for field, value in redis.hgetall(worker).items()
        if field.decode().startswith(keys.WORKER_SPEED_PREFIX)
    ]
    return statistics.fmean(told)


def _cost_in_redis(redis: Redis, side: Avocat, jobs: Sequence[Arrival]) -> dict[str, Any]:
    """Commands (those inside scripts, too) and processor time of Redis: for a job, and idle."""
    idle_s = 5.0
    before = _Spent.read(redis)
    time.sleep(idle_s)
    idle = _Spent.read(redis).since(before)
    finished = "rq:finished:normal"
    until = redis.zcard(finished) + len(jobs)
    before, began = _Spent.read(redis), time.monotonic()
    for job in jobs:
        side.ask(job.request, time.time())
    while redis.zcard(finished) < until:  # ZCARD: what nobody else asks here
        time.sleep(0.2)
    spent, took = _Spent.read(redis).since(before), time.monotonic() - began
    commands = sum(spent.commands.values()) / len(jobs)
    return {
        "redis_commands_per_job": round(commands, 1),
        "redis_us_per_job": round(1e6 * spent.cpu_s / len(jobs)),
        "redis_bytes_kept_per_job": round(spent.memory_bytes / len(jobs)),
        "redis_commands_by_name": {
            name: round(count / len(jobs), 2)
            for name, count in sorted(spent.commands.items(), key=lambda one: -one[1])[:12]
        },
        "redis_idle_commands_per_s": round(sum(idle.commands.values()) / idle_s, 1),
        "redis_idle_us_per_s": round(1e6 * idle.cpu_s / idle_s),
        "redis_jobs_per_s_meanwhile": round(len(jobs) / took, 2),
    }


@dataclass(frozen=True)
class _Spent:
    """What Redis has done since its start, but for the looks of this program."""

    commands: Counter[str]
    cpu_s: float
    memory_bytes: int

    @classmethod
    def read(cls, redis: Redis) -> Self:
        stats: dict[str, Any] = redis.info("commandstats")
        calls = Counter(
            {name.removeprefix("cmdstat_"): one["calls"] for name, one in stats.items()}
        )
        cpu: dict[str, float] = redis.info("cpu")
        for own in ("zcard", "info"):
            del calls[own]
        memory = int(redis.info("memory")["used_memory"])
        return cls(calls, cpu["used_cpu_sys"] + cpu["used_cpu_user"], memory)

    def since(self, before: Self) -> Self:
        return type(self)(
            self.commands - before.commands,
            self.cpu_s - before.cpu_s,
            self.memory_bytes - before.memory_bytes,
        )


def measure_api(number: int, seconds: float) -> dict[str, Any]:
    """Submissions a second that so many API processes take in, all asked at once."""
    with _plan(ENGINE) as plan, ExitStack() as stack:
        server = EmbeddedRedis(plan.settings.data_dir / "redis")
        server.start()
        stack.callback(server.stop)
        redis = stack.enter_context(connect(server.url))
        announce(redis, model_card(loaded(plan.settings), 16, "none"))
        command = program("app.cli", "api")
        folder = plan.settings.data_dir
        ports = [stack.enter_context(serving(command, server.url, folder)) for _ in range(number)]
        before = _Spent.read(redis)

        async def ask() -> float:
            rates = (post_for(port, "/v1/jobs", seconds) for port in ports)
            return sum(await asyncio.gather(*rates))

        rate = asyncio.run(ask())
        spent = _Spent.read(redis).since(before)
    return {
        "api_processes": number,
        "submissions_per_s": round(rate),
        "redis_us_per_submission": round(1e6 * spent.cpu_s / spent.commands["evalsha"], 1),
    }


def _quantiles(prefix: str, found: Sequence[float]) -> dict[str, float]:
    last = len(found) - 1
    return {
        f"{prefix}p50_s": round(found[round(0.5 * last)], 2),
        f"{prefix}p95_s": round(found[round(0.95 * last)], 2),
    }


@contextmanager
def _plan(engine: Engine) -> Iterator[Plan]:
    with tempfile.TemporaryDirectory(prefix="avocat-scaling-") as folder:
        settings = Settings(
            data_dir=Path(folder),
            slots=engine.slots,
            micro_batch=engine.micro_batch,
            threads=1,
            runtime="eager",
            device="cpu",
        )
        yield Plan(0.0, settings, "python -m benchmarks.scaling")


def _start_worker(stack: ExitStack, plan: Plan, url: str, engine: Engine) -> None:
    named = ("bundle", "device", "slots", "micro_batch", "threads", "runtime", "data_dir")
    values = {name: getattr(plan.settings, name) for name in named} | {"redis_url": url}
    given = {f"AVOCAT_{name.upper()}": str(value) for name, value in values.items()}
    process = subprocess.Popen(
        program("benchmarks.fake_device"),
        env=environment()
        | given
        | {"AVOCAT_LOG_LEVEL": "warning", "OMP_NUM_THREADS": "1"}
        | {CALL_S: f"{engine.seconds_per_call}"},
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=tied_to_parent(signal.SIGTERM),
    )
    stack.callback(process.wait)
    stack.callback(process.terminate)


def _wait_for_workers(redis: Redis, number: int) -> None:
    until = time.monotonic() + START_S
    while redis.scard(keys.RQ_WORKERS) != number:
        if time.monotonic() > until:
            raise TimeoutError(f"{number} workers did not start within {START_S:g} s")
        time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main())
