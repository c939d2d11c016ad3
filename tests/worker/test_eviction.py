"""Which models leave so that another one fits."""

import pytest

from worker.eviction import Tenant, to_leave

OLD, NEW = Tenant("old", 4, used_at=1.0), Tenant("new", 4, used_at=2.0)
BUSY = Tenant("busy", 4, used_at=0.0, wanted=True)
SMALL = Tenant("small", 1, used_at=0.5)


@pytest.mark.parametrize(
    ("need", "free", "tenants", "leaving"),
    [
        (3, 3, [OLD, NEW], []),
        (3, 0, [NEW, OLD], ["old"]),
        (5, 0, [NEW, OLD], ["old", "new"]),
        (3, 0, [BUSY, NEW], ["new"]),  # although it was used later
        (8, 0, [BUSY, NEW], ["new", "busy"]),
        (4, 0, [SMALL, OLD], ["old"]),  # the small one would have left in vain
        (5, 0, [SMALL, OLD], ["small", "old"]),
        (9, 0, [OLD, NEW], None),
        (1, 0, [], None),
        (3, -2, [OLD, NEW], ["old", "new"]),  # more than the budget was loaded at the start
    ],
)
def test_the_fewest_leave_those_without_work_first(
    need: int, free: int, tenants: list[Tenant], leaving: list[str] | None
) -> None:
    found = to_leave(need, free, tenants)
    assert (None if found is None else [one.name for one in found]) == leaving
