"""The admission policy."""

import random

import pytest

from worker.admission import Candidate, choose


def names(*rows: int) -> list[Candidate]:
    return [Candidate(str(i), n) for i, n in enumerate(rows)]


@pytest.mark.parametrize(
    ("rows", "free", "idle", "taken"),
    [
        ((1, 1, 1), 2, False, 2),
        ((3, 1), 2, False, 0),  # nobody overtakes
        ((1, 8, 1), 4, False, 1),
        ((8, 1), 4, True, 1),  # more rows than slots: when there is nothing else
        ((2, 2), 4, True, 2),
        ((), 4, True, 0),
        ((1,), 0, False, 0),
    ],
)
def test_what_fits_is_taken_in_order(
    rows: tuple[int, ...], free: int, idle: bool, taken: int
) -> None:
    candidates = names(*rows)
    assert choose(candidates, free=free, idle=idle) == candidates[:taken]


def test_a_last_chance_has_the_engine_to_itself() -> None:
    suspect = Candidate("suspect", 1, alone=True)
    assert choose([suspect, *names(1, 1)], free=9, idle=True) == [suspect]
    assert choose([*names(1), suspect], free=9, idle=True) == names(1)
    assert choose([suspect], free=9, idle=False) == []


def test_big_jobs_are_not_starved_by_small_ones() -> None:
    """Small jobs would fill every gap; the big one still enters in its turn."""
    dice = random.Random(1)
    waiting = [Candidate(str(i), 8 if i == 40 else 1) for i in range(400)]
    flying: list[tuple[int, Candidate]] = []
    order: list[str] = []
    for now in range(2000):
        flying = [(end, one) for end, one in flying if end > now]
        free = 16 - sum(one.rows for _, one in flying)
        chosen = choose(waiting[:16], free=free, idle=not flying)
        waiting = waiting[len(chosen) :]
        flying += [(now + dice.randint(5, 50), one) for one in chosen]
        order += [one.job_id for one in chosen]
    assert order == [str(i) for i in range(400)]
