"""The admission policy."""

import math
import random
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.jobs.line import Line
from worker.admission import SPARE_S, Candidate, choose


def names(*rows: int) -> list[Candidate]:
    return [Candidate(str(i), n) for i, n in enumerate(rows)]


def line(*queues: Sequence[Candidate]) -> Line[Candidate]:
    return Line(queues, lambda one: 0.0, patience_s=math.inf)


@pytest.mark.parametrize(
    ("rows", "free", "idle", "taken"),
    [
        ((1, 1, 1), 2, False, 2),
        ((3, 1), 2, False, 1),  # the third row waits for a slot, before anybody else's
        ((1, 8, 1), 4, False, 2),
        ((8, 1), 4, True, 1),
        ((2, 2), 4, True, 2),
        ((), 4, True, 0),
        ((1,), 0, False, 0),
    ],
)
def test_what_fits_is_taken_in_order(
    rows: tuple[int, ...], free: int, idle: bool, taken: int
) -> None:
    candidates = names(*rows)
    assert choose(line(candidates), now=0, free=free, hungry=free, idle=idle) == candidates[:taken]


@pytest.mark.parametrize(
    ("hungry", "waited", "taken"), [(2, 0.0, 2), (0, 0.0, 0), (0, SPARE_S, 4), (1, 9.0, 4)]
)
def test_beyond_what_is_computed_at_once_other_workers_go_first(
    hungry: int, waited: float, taken: int
) -> None:
    candidates = [Candidate(str(i), 1, since=100.0) for i in range(6)]
    chosen = choose(line(candidates), now=100 + waited, free=4, hungry=hungry, idle=True)
    assert chosen == candidates[:taken]


def test_a_last_chance_has_the_engine_to_itself() -> None:
    suspect = Candidate("suspect", 1, alone=True)
    assert choose(line([suspect, *names(1, 1)]), now=0, free=9, hungry=9, idle=True) == [suspect]
    assert choose(line([*names(1), suspect]), now=0, free=9, hungry=9, idle=True) == names(1)
    assert choose(line([suspect]), now=0, free=9, hungry=9, idle=False) == []


def test_big_jobs_are_not_starved_by_small_ones() -> None:
    """Small jobs would fill every gap; the big one still enters in its turn."""
    dice = random.Random(1)
    waiting = [Candidate(str(i), 8 if i == 40 else 1) for i in range(400)]
    flying: list[tuple[int, Candidate]] = []
    order: list[str] = []
    for now in range(2000):
        flying = [(end, one) for end, one in flying if end > now]
        free = 16 - sum(one.share for _, one in flying)
        chosen = choose(line(waiting[:16]), now=0, free=free, hungry=free, idle=not flying)
        waiting = waiting[len(chosen) :]
        flying += [(now + dice.randint(5, 50), one) for one in chosen]
        order += [one.job_id for one in chosen]
    assert order == [str(i) for i in range(400)]


PATIENCE = 50
Waits = tuple[int, int]  # (queue, since)


@given(
    st.lists(st.lists(st.integers(-200, 0), max_size=30), min_size=3, max_size=3),
    st.booleans(),
)
def test_all_are_taken_each_queue_in_its_order(queues: list[list[int]], impatient: bool) -> None:
    jobs = [[(at, since) for since in queue] for at, queue in enumerate(queues)]
    waiting = Line(jobs, lambda one: one[1], patience_s=PATIENCE, impatient=impatient)
    taken: list[Waits] = []
    late_before = not impatient
    while (head := waiting.head(0)) is not None:
        late = waiting.take(0)
        assert not (late and late_before)  # never two turns in a row
        higher_left = any(len(jobs[at]) > sum(q == at for q, _ in taken) for at in range(head[0]))
        assert late == higher_left
        taken.append(head)
        late_before = late
    assert [[one for one in taken if one[0] == at] for at in range(3)] == jobs


def test_without_impatience_the_highest_priority_goes_first() -> None:
    queues = [names(1, 1), names(1), names(1, 1)]
    order = choose(line(*queues), now=1e9, free=9, hungry=9, idle=True)
    assert order == [one for queue in queues for one in queue]


def test_those_who_waited_beyond_the_window_count() -> None:
    queues = [[0], [0]]
    fresh = Line(queues, lambda _: 0.0, patience_s=PATIENCE, beyond=[math.inf, -49.0])
    late = Line(queues, lambda _: 0.0, patience_s=PATIENCE, beyond=[math.inf, -50.0])
    assert not fresh.take(0)
    assert late.take(0)


@pytest.mark.parametrize("load", [0.9, 1.5, 4.0])
def test_no_job_starves_whatever_comes(load: float) -> None:
    """A thousand jobs and more at one server of one job a second, most of high priority.

    A job of a lower queue waits its patience, and then for no more than two jobs for each one of
    the lower queues that is older than it; all this while high jobs pile up.
    """
    dice = random.Random(load)
    queues: list[list[Waits]] = [[], [], []]
    came, impatient, waited = 0.0, True, Counter[int]()
    for now in range(700):
        while came <= now:
            at = dice.choices([0, 1, 2], [20, 1, 1])[0]
            queues[at].append((at, now))
            came += dice.expovariate(load)
        waiting = Line(queues, lambda one: one[1], patience_s=PATIENCE, impatient=impatient)
        if (head := waiting.head(now)) is None:
            continue
        waiting.take(now)
        impatient = waiting.impatient
        queues[head[0]].remove(head)
        waited[head[0]] = max(waited[head[0]], now - head[1])
        bound = PATIENCE + 2 * sum(len(queue) for queue in queues[1:]) + 4
        assert all(now - since <= bound for queue in queues[1:] for _, since in queue)
    assert waited[1] > 0
    assert waited[2] > 0
