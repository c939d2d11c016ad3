"""The simulation of queueing against closed forms, and against a real worker for a moment."""

import json
import random
import statistics

import pytest

from app.jobs.forecast import Engine, forecast
from app.jobs.outlook import load_of
from benchmarks import scaling
from benchmarks.arrivals import Arrival, arrivals, at_once
from benchmarks.capacity import capacity, main, predict, simulate
from benchmarks.subject import mixed

ONE_SLOT = Engine(slots=1, micro_batch=2, seconds_per_call=0.1)


def alike(rate: float, count: int, steps: int) -> list[Arrival]:
    """A Poisson process of jobs that all take as long."""
    dice = random.Random(5)
    request = mixed(dice).model_copy(update={"steps": steps, "guidance_scale": 1.0})
    times, now = [], 0.0
    for _ in range(count):
        now += dice.expovariate(rate)
        times.append(Arrival(now, request))
    return times


def test_a_queue_before_one_server_waits_as_pollaczek_and_khinchine_say() -> None:
    """M/D/1: mean wait = ρ s / 2 (1 - ρ)."""
    service_s, load = 1.0, 0.7
    jobs = alike(load / service_s, 40_000, steps=10)
    waits = [took - service_s for took in simulate(ONE_SLOT, 1, jobs)]
    assert min(waits) == pytest.approx(0.0, abs=1e-6)
    assert statistics.fmean(waits) == pytest.approx(load * service_s / 2 / (1 - load), rel=0.08)


def test_a_burst_ends_as_the_estimates_of_the_api_say() -> None:
    engine = Engine(slots=4, micro_batch=2, seconds_per_call=0.01)
    jobs = at_once(random.Random(2), 60)
    loads = [load_of(f"{i}", job.request, job.request.steps) for i, job in enumerate(jobs)]
    ends = forecast([engine], {}, [loads])
    # They differ by the step that a newcomer waits for.
    assert max(simulate(engine, 1, jobs)) == pytest.approx(max(ends.values()), rel=0.05)


def test_many_engines_wait_less_than_one_at_the_same_share() -> None:
    engine = Engine(slots=4, micro_batch=4, seconds_per_call=0.02)
    rate = 0.8 * capacity(engine, arrivals(random.Random(1), 1.0, 1000.0))
    alone, many = (predict(engine, n, n * rate, 3000 / (n * rate)) for n in (1, 20))
    assert many.p95 < alone.p95
    assert many.throughput == pytest.approx(20 * rate, rel=0.1)
    assert alone.busy == pytest.approx(0.8, rel=0.1)


def test_capacity_is_that_of_always_full_batches() -> None:
    engine = Engine(slots=8, micro_batch=8, seconds_per_call=0.02)
    jobs = alike(1.0, 4000, steps=10)  # unguided: one call a step
    assert capacity(engine, jobs) == pytest.approx(8 / (10 * 0.02), rel=0.01)
    assert predict(engine, 1, 30.0, 100.0).throughput < capacity(engine, jobs)


def test_an_overload_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["--gpus", "2", "--rate", "1000", "--seconds-per-call", "0.05", "--jobs", "500"]) == 0
    )
    assert "More comes in than is drawn" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--gpus", "0", "--seconds-per-call", "0.05"])


@pytest.mark.load
def test_a_real_worker_is_near_its_prediction(capsys: pytest.CaptureFixture[str]) -> None:
    assert scaling.main(["workers", "1", "--seconds", "10"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["jobs_per_s"] == pytest.approx(found["predicted_jobs_per_s"], rel=0.25)
    assert 0 < found["redis_commands_per_job"] < 200
