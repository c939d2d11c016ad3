"""Forecasts against engines that are played step by step."""

import random
import statistics

import pytest

from app.jobs.forecast import Engine, Load, forecast

ENGINE = Engine(slots=16, micro_batch=2, seconds_per_call=0.01)


def played(engines: list[Engine], waiting: list[Load]) -> dict[str, float]:
    """The ends when every engine really steps, row by row; forwards are whole numbers here."""
    line, ends = list(waiting), {}
    flying: list[dict[str, list[float]]] = [{} for _ in engines]  # steps left of each row
    loads = {load.job_id: load for load in waiting}
    clocks = [0.0] * len(engines)
    while line or any(flying):
        index = min((i for i in range(len(engines)) if flying[i] or line), key=lambda i: clocks[i])
        engine, jobs = engines[index], flying[index]
        while line:
            taken = sum(row > 0 for left in jobs.values() for row in left)
            if taken >= engine.slots:
                break
            load = line.pop(0)
            jobs[load.job_id] = [load.steps] * load.rows
        rows = [(job, i) for job, left in jobs.items() for i in range(len(left)) if left[i] > 0]
        rows = rows[: engine.slots]
        forwards = sum(loads[job].forwards for job, _ in rows)
        clocks[index] += max(1.0, forwards / engine.micro_batch) * engine.seconds_per_call
        for job, i in rows:
            jobs[job][i] -= 1
        for job in [job for job, left in jobs.items() if max(left) <= 0]:
            del jobs[job]
            ends[job] = clocks[index]
    return ends


def mixed(count: int, seed: int) -> list[Load]:
    dice = random.Random(seed)
    return [
        Load(str(i), dice.randint(1, 8), dice.randint(4, 50), dice.choice([1, 2, 2]))
        for i in range(count)
    ]


def test_one_job_takes_its_calls() -> None:
    assert forecast([ENGINE], {}, [[Load("a", 1, 10, 2)]]) == {"a": pytest.approx(0.1)}
    assert forecast([ENGINE], {}, [[Load("a", 1, 10, 1)]]) == {"a": pytest.approx(0.1)}
    assert forecast([ENGINE], {}, [[Load("a", 8, 10, 2)]]) == {"a": pytest.approx(0.8)}


def test_those_in_one_batch_share_its_time() -> None:
    ends = forecast([ENGINE], {0: [Load("a", 1, 10, 2)]}, [[Load("b", 1, 20, 2)]])
    assert ends == {"a": pytest.approx(0.2), "b": pytest.approx(0.3)}


def test_none_overtakes_one_that_waits_for_room() -> None:
    running = {0: [Load("a", 15, 10, 1)]}
    ends = forecast([ENGINE], running, [[Load("b", 8, 10, 1), Load("c", 1, 1, 1)]])
    assert ends["a"] < ends["c"] < ends["b"]  # b's first row comes in at once, c after its last


def test_more_rows_than_slots_take_turns() -> None:
    small = Engine(slots=2, micro_batch=2, seconds_per_call=0.01)
    assert forecast([small], {}, [[Load("a", 4, 10, 1)]]) == {"a": pytest.approx(0.2)}


@pytest.mark.parametrize("engines", [1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_two_hundred_mixed_jobs(engines: int, seed: int) -> None:
    jobs = mixed(200, seed)
    really, said = played([ENGINE] * engines, jobs), forecast([ENGINE] * engines, {}, [jobs])
    assert really.keys() == said.keys()
    errors = [abs(said[job] - really[job]) / really[job] for job in really]
    assert statistics.median(errors) < 0.02
    assert max(errors) < 0.4  # which engine takes the next one is chance


def test_nothing_waits_and_nothing_runs() -> None:
    assert forecast([ENGINE], {}, []) == {}


def test_a_queue_whose_patience_is_over_goes_every_second_time() -> None:
    one = Engine(slots=1, micro_batch=1, seconds_per_call=1.0)
    high = [Load(f"high{i}", 1, 10, 1, since=0.0) for i in range(6)]
    low = [Load(f"low{i}", 1, 10, 1, since=0.0) for i in range(2)]
    ends = forecast([one], {}, [high, low], patience_s=15.0, at=0.0)
    assert sorted(ends, key=ends.__getitem__) == [
        "high0", "high1", "low0", "high2", "low1", "high3", "high4", "high5"
    ]  # fmt: skip
