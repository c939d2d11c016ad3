"""How many GPUs a load needs: `python -m benchmarks.capacity --gpus 8 --rate 30 …`.

A simulation of queueing: jobs come as a Poisson process, wait in one line, and enter any engine
that has room, first those that do not compute all they could at once; there they are drawn as
`app.jobs.forecast` plays it. What a call of the network costs is measured (`/metrics`,
`docs/performance.md`) and given. Assumed: which of several such engines takes a job is chance;
Redis and storage keep up; nothing fails.
"""

import argparse
import heapq
import random
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from app.jobs.forecast import Engine, Load, Playing
from app.jobs.outlook import load_of
from benchmarks.arrivals import Arrival, arrivals
from benchmarks.results import spread

__all__ = ["Outcome", "capacity", "predict", "simulate"]

_WARM_UP = 0.2  # share of the jobs that find the engines emptier than later ones


@dataclass(frozen=True)
class Outcome:
    """What a simulation gave, in seconds and jobs a second."""

    throughput: float
    busy: float  # the load as a share of the capacity
    p50: float
    p95: float


class _Bag:
    """Numbers, one of which is drawn by chance."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self.numbers = list(numbers)
        self._at = {number: place for place, number in enumerate(numbers)}

    def hold(self, number: int, held: bool) -> None:
        if held and number not in self._at:
            self._at[number] = len(self.numbers)
            self.numbers.append(number)
        elif not held and number in self._at:
            place, last = self._at.pop(number), self.numbers.pop()
            if last != number:
                self.numbers[place], self._at[last] = last, place


class _Fleet:
    """Engines, and when the next job ends in each."""

    def __init__(self, engine: Engine, count: int, dice: random.Random) -> None:
        self.engines = [Playing(engine) for _ in range(count)]
        self._hungry = _Bag(range(count))  # those that compute less at once than they could
        self._open = _Bag(range(count))  # those with a free slot
        self._ends: list[tuple[float, int, int]] = []
        self._versions = [0] * count
        self._dice = dice

    def next_end(self) -> float:
        """When the next job ends anywhere."""
        while self._ends and self._ends[0][2] != self._versions[self._ends[0][1]]:
            heapq.heappop(self._ends)
        return self._ends[0][0] if self._ends else float("inf")

    def end_next(self) -> list[str]:
        """Let the jobs end that end next."""
        at, number, _ = heapq.heappop(self._ends)
        ended = self.engines[number].advance(at)
        self._changed(number)
        return ended

    def admit(self, load: Load, now: float) -> float | None:
        """Put a job into an engine with room; how long its first step waits for the one under way.

        None where none has room.
        """
        bag = (self._hungry if self._hungry.numbers else self._open).numbers
        for _ in range(len(bag)):
            number = self._dice.choice(bag)
            engine = self.engines[number]
            if engine.free >= load.rows or not engine.rows:
                break
        else:
            return None
        waits = self._dice.random() * engine.engine.seconds_per_call if engine.rows else 0.0
        engine.advance(now)
        engine.admit(load, now)
        self._changed(number)
        return waits

    def _changed(self, number: int) -> None:
        self._versions[number] += 1
        engine = self.engines[number]
        if engine.rows:
            heapq.heappush(self._ends, (engine.next_end(), number, self._versions[number]))
        self._open.hold(number, engine.free > 0)
        self._hungry.hold(number, len(engine.rows) < engine.engine.micro_batch)


def simulate(
    engine: Engine, count: int, jobs: Sequence[Arrival], overhead_s: float = 0.0, seed: int = 0
) -> list[float]:
    """Seconds from each job's arrival to its end, in the order given.

    `overhead_s`: what a lone job takes beyond its steps, from the request to the stored picture.
    """
    fleet = _Fleet(engine, count, random.Random(seed))
    loads = [load_of(f"{i}", job.request, job.request.steps) for i, job in enumerate(jobs)]
    line: deque[int] = deque()
    latencies = [overhead_s] * len(jobs)
    coming = 0
    while coming < len(jobs) or fleet.next_end() < float("inf"):
        arrival = jobs[coming].at_s if coming < len(jobs) else float("inf")
        now = min(arrival, fleet.next_end())
        if now == arrival:
            line.append(coming)
            coming += 1
        else:
            for job_id in fleet.end_next():
                latencies[int(job_id)] += now - jobs[int(job_id)].at_s
        while line and (waits := fleet.admit(loads[line[0]], now)) is not None:
            latencies[line.popleft()] += waits
    return latencies


def capacity(engine: Engine, jobs: Sequence[Arrival]) -> float:
    """Jobs a second that one engine gets through when these wait from the start.

    Of many jobs, else filling and emptying the batch weigh in.
    """
    burst = [replace(job, at_s=0.0) for job in jobs]
    return len(burst) / max(simulate(engine, 1, burst))


def predict(
    engine: Engine, count: int, rate: float, seconds: float, overhead_s: float = 0.0, seed: int = 0
) -> Outcome:
    """Simulate `count` engines under mixed jobs (`benchmarks.arrivals`), `rate` a second."""
    jobs = arrivals(random.Random(seed), rate, seconds)
    latencies = simulate(engine, count, jobs, overhead_s, seed)
    settled = sorted(latencies[int(_WARM_UP * len(latencies)) :])
    last = max(job.at_s + took for job, took in zip(jobs, latencies, strict=True))
    return Outcome(
        throughput=len(jobs) / last,
        busy=rate / (count * capacity(engine, jobs)),
        p50=spread(settled)[1],
        p95=settled[min(len(settled) - 1, int(0.95 * len(settled)))],
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what is to be expected."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.capacity",
        description="Latencies of mixed jobs (10 to 50 steps) on N GPUs, by simulation.",
    )
    parser.add_argument("--gpus", type=int, required=True, help="workers, one for each GPU")
    parser.add_argument("--rate", type=float, help="jobs a second (default: 0.8 of the capacity)")
    parser.add_argument("--seconds-per-call", type=float, required=True, help="of the network")
    parser.add_argument("--slots", type=int, default=16, help="AVOCAT_SLOTS")
    parser.add_argument("--micro-batch", type=int, default=16, help="AVOCAT_MICRO_BATCH")
    parser.add_argument("--overhead", type=float, default=0.1, help="seconds beyond the steps")
    parser.add_argument("--jobs", type=int, default=20000, help="to simulate")
    options = parser.parse_args(arguments)
    if options.gpus < 1 or options.seconds_per_call <= 0 or (options.rate or 1) <= 0:
        parser.error("--gpus, --rate and --seconds-per-call must be above 0")
    engine = Engine(options.slots, options.micro_batch, options.seconds_per_call)
    sample = arrivals(random.Random(1), 1.0, 2000.0)
    most = options.gpus * capacity(engine, sample)
    rate = options.rate or 0.8 * most
    found = predict(engine, options.gpus, rate, options.jobs / rate, options.overhead)
    print(f"capacity     {most:.2f} jobs/s of {options.gpus} GPUs")
    print(f"load         {rate:.2f} jobs/s, {found.busy:.0%} of the capacity")
    print(f"throughput   {found.throughput:.2f} jobs/s")
    print(f"latency      p50 {found.p50:.2f} s, p95 {found.p95:.2f} s")
    if found.busy >= 1:
        print("More comes in than is drawn: latencies grow for as long as that lasts.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
