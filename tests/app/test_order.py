"""The order of rows in an engine, by simulation with thousands of jobs."""

import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest

from app.jobs.order import AGEING, HANDICAPS, due_after_s, in_turn, tag


@dataclass
class Row:
    job: str
    left: float
    tag: float
    due_s: float = math.inf


@dataclass(frozen=True)
class Job:
    name: str
    at: float
    rows: int
    forwards: int
    priority: str = "normal"
    patience: float = math.inf


Turn = Callable[[list[Row], Sequence[Row], float], list[Row]]
SLOTS, ROOM = 8, 2


def waits(jobs: Sequence[Job], turn: Turn) -> dict[str, float]:
    """Rounds of `ROOM` forwards from each job's coming to its end; they get slots as they come."""
    line, rows, now, asked = list(jobs), list[Row](), 0.0, 0
    ends: dict[str, float] = {}
    while line or rows:
        while line and line[0].at <= now and len(rows) < SLOTS:
            job = line.pop(0)
            turn_tag = tag(asked, job.priority)
            due = now + job.patience
            rows += [Row(job.name, job.forwards, turn_tag, due) for _ in range(job.rows)]
        if not rows:
            now = line[0].at
            continue
        for row in turn(rows, (), now)[:ROOM]:
            row.left -= 1
            asked += 1
        now += 1
        ended = {row.job for row in rows if row.left <= 0}
        rows = [row for row in rows if row.left > 0]
        ends |= dict.fromkeys(ended - {row.job for row in rows}, now)
    return {job.name: ends[job.name] - job.at for job in jobs}


def poisson(count: int, load: float, seed: int) -> list[Job]:
    """Mixed jobs of 10 to 100 forwards a row, at a share of what there is room for."""
    dice, now, found = random.Random(seed), 0.0, []
    for number in range(count):
        rows, forwards = dice.choice([1, 1, 1, 2, 4]), dice.randint(10, 100)
        now += dice.expovariate(load * ROOM / (55 * 1.8))
        found.append(Job(f"{number}", now, rows, forwards))
    return found


def first_come(rows: list[Row], *_: object) -> list[Row]:
    return rows


@pytest.mark.parametrize("seed", range(3))
def test_the_mean_is_lower_and_the_longest_wait_has_a_bound(seed: int) -> None:
    jobs = poisson(3000, 0.9, seed)
    ours, theirs = waits(jobs, in_turn), waits(jobs, first_come)
    assert statistics.fmean(ours.values()) < 0.9 * statistics.fmean(theirs.values())
    assert max(ours.values()) < 2.5 * max(theirs.values())


def test_no_job_is_passed_over_for_longer_than_its_work_says() -> None:
    """Short jobs come for ever, as many as there is room for."""
    long = Job("long", 0.0, 1, 100)
    short = [Job(f"{i}", i * 2.0, 1, 4) for i in range(4000)]
    took = waits([long, *short], in_turn)["long"]
    assert took * ROOM < 100 / AGEING + 100 + SLOTS * 100


def test_low_priority_has_an_end_too() -> None:
    low = Job("low", 0.0, 1, 50, "low")
    high = [Job(f"{i}", i * 2.0, 1, 4, "high") for i in range(12000)]
    took = waits([low, *high], in_turn)["low"]
    assert took * ROOM < (50 + HANDICAPS["low"]) / AGEING + 1000


@pytest.mark.parametrize("priority", HANDICAPS)
def test_who_may_not_wait_for_longer_has_all_turns_from_then_on(priority: str) -> None:
    long = Job("long", 0.0, 4, 400, priority, patience=due_after_s(5000, 4000))
    short = [Job(f"{i}", i * 2.0, 1, 4, "high") for i in range(5000)]
    assert waits([long, *short], in_turn)["long"] <= 4000 / 4 + 4 * 400 / ROOM
    assert due_after_s(patience_s=100, timeout_s=4000) == 100


def test_of_those_that_are_due_the_one_that_came_first_goes_first() -> None:
    rows = [Row("a", 1, 0.0, 9.0), Row("b", 2, 0.0, 5.0), Row("c", 9, 0.0, 4.0)]
    assert [row.job for row in in_turn(rows, now=3.9)] == ["a", "b", "c"]
    assert [row.job for row in in_turn(rows, now=6.0)] == ["c", "b", "a"]


def test_the_rows_of_a_job_end_together() -> None:
    rows = [Row("a", 10, 0.0), Row("a", 10, 0.0), Row("a", 10, 0.0)]
    for _ in range(14):
        for row in in_turn(rows)[:ROOM]:
            row.left -= 1
    assert sorted(row.left for row in rows) == [0, 1, 1]


def test_rows_that_can_have_no_turn_yet_count_for_their_job() -> None:
    one, other = Row("one", 10, 0.0), Row("other", 15, 0.0)
    assert in_turn([one, other]) == [one, other]
    assert in_turn([one, other], [Row("one", 10, 0.0)]) == [other, one]
