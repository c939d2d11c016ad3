"""Forecasts against engines that are played step by step."""

import math
import random
import statistics
from dataclasses import dataclass, replace

import pytest

from app.jobs.forecast import Engine, Load, forecast
from app.jobs.order import in_turn, tag

ENGINE = Engine(slots=16, micro_batch=2, seconds_per_call=0.01)


@dataclass
class _Row:
    load: Load
    index: int
    steps: float  # left
    tag: float
    due_s: float = math.inf

    @property
    def job(self) -> str:
        return self.load.job_id

    @property
    def left(self) -> float:
        return self.steps * self.load.forwards

    @property
    def missing(self) -> int:
        """Forwards until its next step is done."""
        return round(self.left - 1) % round(self.load.forwards) + 1


def played(engines: list[Engine], waiting: list[Load]) -> dict[str, float]:
    """The ends when every engine really steps, row by row; forwards are whole numbers here."""
    line, ends = list(waiting), {}
    flying: list[dict[str, list[float]]] = [{} for _ in engines]  # steps left of each row
    loads = {load.job_id: load for load in waiting}
    clocks, asked, tags = [0.0] * len(engines), [0] * len(engines), dict[str, float]()
    while line or any(flying):
        while line:
            taken = [sum(row > 1e-9 for left in jobs.values() for row in left) for jobs in flying]
            into = taken.index(min(taken))
            if taken[into] >= engines[into].slots:
                break
            load = line.pop(0)
            flying[into][load.job_id] = [load.steps] * load.rows
            tags[load.job_id] = tag(asked[into], load.priority)
            now = min((clocks[i] for i in range(len(engines)) if flying[i]), default=0.0)
            clocks[into] = max(clocks[into], now)
        index = min((i for i in range(len(engines)) if flying[i]), key=lambda i: clocks[i])
        engine, jobs = engines[index], flying[index]
        rows = [_Row(loads[job], i, left[i], tags[job]) for job, left in jobs.items()
                for i in range(len(left)) if left[i] > 1e-9]  # fmt: skip
        rows = in_turn(rows[: engine.slots], rows[engine.slots :])
        calls = [row for row in rows for _ in range(row.missing)][: engine.micro_batch]
        clocks[index] += engine.seconds_per_call
        asked[index] += len(calls)
        for row in calls:
            jobs[row.job][row.index] -= 1 / row.load.forwards
        for job in [job for job, left in jobs.items() if max(left) <= 1e-9]:
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


def test_the_shorter_one_goes_first() -> None:
    ends = forecast([ENGINE], {0: [Load("a", 1, 20, 2)]}, [[Load("b", 1, 10, 2)]])
    assert ends == {"a": pytest.approx(0.3), "b": pytest.approx(0.1)}


def test_those_that_leave_room_share_the_calls() -> None:
    ends = forecast([ENGINE], {0: [Load("a", 1, 10, 1)]}, [[Load("b", 1, 20, 2)]])
    assert ends == {"a": pytest.approx(0.1), "b": pytest.approx(0.25)}


def test_priorities_and_long_waits_count() -> None:
    long, high = Load("long", 1, 50, 2), Load("high", 1, 50, 2, priority="high")
    ends = forecast([ENGINE], {0: [Load("a", 1, 10, 2), high]}, [])
    assert ends["high"] < ends["a"]
    since = {"at": 1000.0}
    new = Load("new", 1, 10, 2, started=1000.0)
    for waited, first in ((1.0, "new"), (9.0, "long")):
        running = {0: [replace(long, started=1000.0 - waited), new]}
        ends = forecast([ENGINE], running, [], **since)
        assert min(ends, key=ends.__getitem__) == first


def test_none_overtakes_one_that_waits_for_room() -> None:
    running = {0: [Load("a", 15, 10, 1)]}
    ends = forecast([ENGINE], running, [[Load("b", 8, 10, 1), Load("c", 1, 1, 1)]])
    assert ends["c"] > 0.4  # b's first row comes in at once, c after its last
    assert ends["c"] < ends["b"] < ends["a"]


def test_more_rows_than_slots_take_turns() -> None:
    small = Engine(slots=2, micro_batch=2, seconds_per_call=0.01)
    assert forecast([small], {}, [[Load("a", 4, 10, 1)]]) == {"a": pytest.approx(0.2)}


@pytest.mark.parametrize("engines", [1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_two_hundred_mixed_jobs(engines: int, seed: int) -> None:
    jobs = mixed(200, seed)
    really, said = played([ENGINE] * engines, jobs), forecast([ENGINE] * engines, {}, [jobs])
    assert really.keys() == said.keys()
    errors = sorted(abs(said[job] - really[job]) / really[job] for job in really)
    if engines == 1:
        assert statistics.median(errors) < 0.02
        assert errors[-1] < 0.4
    else:  # which engine takes the next one is chance, and then whom it is compared with
        assert statistics.median(errors) < 0.05
        assert errors[180] < 0.8


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


def test_a_forecast_of_many_hours_of_a_fast_engine_ends() -> None:
    """Far on, the clock is too coarse for what rounding leaves of a step of milliseconds."""
    engine = Engine(slots=8, micro_batch=2, seconds_per_call=0.0025708)
    jobs = [Load(str(i), 32, 1000, 1.36) for i in range(1000)]
    ends = forecast([engine], {}, [jobs])
    assert max(ends.values()) == pytest.approx(1000 * 32 * 1000 * 1.36 / 2 * 0.0025708, rel=1e-3)
