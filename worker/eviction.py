"""Which loaded models leave so that another one fits. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Tenant", "to_leave"]


@dataclass(frozen=True)
class Tenant:
    """A loaded model. `wanted`: it draws, or jobs of it wait; `used_at`: when it last drew."""

    name: str
    size: int  # bytes of its weights
    used_at: float
    wanted: bool = False


def to_leave(need: int, free: int, tenants: Sequence[Tenant]) -> list[Tenant] | None:
    """The fewest that make room for `need` bytes where `free` are: unwanted ones first, then those
    that were used longest ago; None when all of them together are not enough.
    """
    leaving: list[Tenant] = []
    for tenant in sorted(tenants, key=lambda one: (one.wanted, one.used_at)):
        if free >= need:
            break
        leaving.append(tenant)
        free += tenant.size
    if free < need:
        return None
    # What came first by its age may be needless beside a larger one that came later.
    for tenant in list(leaving):
        if free - tenant.size >= need:
            leaving.remove(tenant)
            free -= tenant.size
    return leaving
