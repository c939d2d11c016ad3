"""The loads: when jobs come, how latencies are counted, and what the peers draw."""

import random
import statistics
import time
from itertools import pairwise
from pathlib import Path
from queue import Queue
from threading import Thread

import pytest
import redis
from PIL import Image

from app.jobs.record import JobRequest
from benchmarks import load, one_by_one, static_batches
from benchmarks.arrivals import Arrival, arrivals, at_once, steady, stretched, work
from benchmarks.sides import OneByOne, StaticBatches
from benchmarks.subject import Plan, executed, mixed


def test_jobs_come_as_a_poisson_process() -> None:
    found = arrivals(random.Random(3), rate=10.0, seconds=400.0)
    times = [one.at_s for one in found]
    gaps = [after - before for before, after in pairwise(times)]
    assert times == sorted(times)
    assert times[-1] < 400.0
    assert len(found) == pytest.approx(4000, rel=0.1)
    # Of exponential gaps the deviation is the mean.
    assert statistics.stdev(gaps) == pytest.approx(statistics.fmean(gaps), rel=0.1)
    assert len(arrivals(random.Random(3), rate=1e-3, seconds=1.0)) == 1


def test_a_load_is_stretched_to_what_it_is_to_be() -> None:
    jobs = arrivals(random.Random(4), rate=1.0, seconds=30.0)
    apart = stretched(jobs, 1.2, forwards_s=50.0)
    assert work(apart) / apart[-1].at_s == pytest.approx(60.0)
    assert [one.request for one in apart] == [one.request for one in jobs]
    factor = apart[0].at_s / jobs[0].at_s
    assert [one.at_s for one in apart] == pytest.approx([factor * one.at_s for one in jobs])


def _mean_stay(jobs: list[Arrival], forwards_s: float) -> float:
    free_s, stays = 0.0, []
    for job in jobs:
        free_s = max(free_s, job.at_s) + work([job]) / forwards_s
        stays.append(free_s - job.at_s)
    return statistics.fmean(stays)


def test_a_steady_load_is_like_one_without_end() -> None:
    endless = stretched(arrivals(random.Random(1), 1.1, 20_000.0), 0.8, 70.0)
    short = [steady(random.Random(seed), 0.8, 70.0, 40.0) for seed in range(5)]
    assert all(work(jobs) / jobs[-1].at_s == pytest.approx(56.0) for jobs in short)
    stays = [_mean_stay(jobs, 70.0) for jobs in short]
    assert stays == pytest.approx([_mean_stay(endless, 70.0)] * 5, rel=0.15)


def test_beyond_the_capacity_no_load_is_steady() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        steady(random.Random(1), 1.2, 70.0, 40.0)


def test_jobs_are_mixed() -> None:
    found = [mixed(random.Random(seed), most_images=2) for seed in range(300)]
    assert {one.steps for one in found} == set(range(10, 51))
    assert {one.sampler for one in found} == {"ddpm", "ddim", "dpmpp_2m"}
    assert {one.n for one in found} == {1, 2}
    assert len({one.guidance_scale for one in found}) == 3


class Late:
    """Takes half a second of the asking program's time, and ends all jobs at one moment."""

    def __init__(self, end: float) -> None:
        self.end = end
        self.due: list[float] = []

    def ask(self, request: JobRequest, due: float) -> str:
        self.due.append(due)
        time.sleep(0.05)
        return f"{len(self.due) - 1}"

    def ended_at(self, job: str) -> float | None:
        return self.end if time.time() >= self.end else None


def test_latency_counts_from_when_a_job_was_due() -> None:
    side = Late(time.time() + 0.3)
    jobs = [Arrival(at_s, mixed(random.Random(1))) for at_s in (0.0, 0.01, 0.02)]
    found = load.latencies(side, jobs)
    assert side.due[2] - side.due[0] == pytest.approx(0.02)  # though it was asked 0.1 s later
    assert found == [side.end - due for due in side.due]
    with pytest.raises(TimeoutError, match="did not end"):
        load.latencies(Late(time.time() + 60), jobs, deadline_s=0.0)


def test_the_rq_peer_draws_one_job_after_the_other(
    plan: Plan, redis_url: str, tmp_path: Path
) -> None:
    with redis.Redis.from_url(redis_url) as client:
        side, jobs = OneByOne(redis_url), [one.request for one in at_once(random.Random(2), 3)]
        asked = [side.ask(job, time.time()) for job in jobs]
        assert side.ended_at(asked[0]) is None
        one_by_one.serve(plan, redis_url, tmp_path, burst=True)
        ends = [side.ended_at(job) for job in asked]
        assert ends == sorted(ends)
        assert client.llen(f"rq:queue:{one_by_one.QUEUE}") == 0
    assert_drawn(jobs, tmp_path)


def assert_drawn(jobs: list[JobRequest], folder: Path) -> None:
    for job in jobs:
        with Image.open(folder / f"{job.seed}.png") as picture:
            assert picture.size == (16, 16)


def test_the_static_peer_answers_when_the_batch_is_done(plan: Plan, tmp_path: Path) -> None:
    asked, answers = Queue(), Queue()
    side = StaticBatches(asked, answers)
    jobs = [one.request for one in at_once(random.Random(2), 6)]
    names = [side.ask(job, time.time()) for job in jobs]
    worker = Thread(
        target=static_batches.run, args=(executed(plan)[0], plan, asked, answers, tmp_path)
    )
    worker.start()
    try:
        ends = [load.ended(side, name, time.monotonic() + 60) for name in names]
    finally:
        asked.put(static_batches.STOP)
        worker.join()
    assert max(ends[:4]) < min(ends[4:])  # a batch has as many jobs as the engine has slots
    assert_drawn(jobs, tmp_path)
