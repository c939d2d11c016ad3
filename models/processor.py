"""The processor, as far as this process may use it."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

__all__ = ["cores"]

_CGROUP = Path("/sys/fs/cgroup")


def cores() -> int:
    """Cores that this process may keep busy: those it may run on, or fewer by a container's quota.

    More threads than that would all be stopped once the quota of a tenth of a second is used up.
    """
    quotas = [max(1, int(share)) for share in _quotas()]
    return min([len(os.sched_getaffinity(0)), *quotas])


def _quotas() -> Iterator[float]:
    """Processor seconds a second that the kernel allows, by version 2 or 1 of its groups."""
    with suppress(OSError, ValueError):  # none, or "max"
        quota, period = (_CGROUP / "cpu.max").read_text().split()
        yield int(quota) / int(period)
    with suppress(OSError, ValueError):
        quota, period = (
            (_CGROUP / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period")
        )
        if int(quota) > 0:  # -1 for none
            yield int(quota) / int(period)
