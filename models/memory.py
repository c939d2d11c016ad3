"""Memory of a device, and of the machine it is in."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

__all__ = ["free_bytes"]

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def free_bytes(device: torch.device) -> int:
    """Bytes that a process may still take, as far as the driver or the kernel can tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    lines = (line.split() for line in _MEMINFO.read_text().splitlines())
    available = next(int(words[1]) * 1024 for words in lines if words[0] == "MemAvailable:")
    return min([available, *_left()])  # a container may have less than the machine


def _left() -> Iterator[int]:
    """Bytes that the kernel's limit leaves, by version 2 or 1 of its groups."""
    old = _CGROUP / "memory"
    with suppress(OSError, ValueError):  # none, or "max"
        limit, taken = (
            int((_CGROUP / f"memory.{name}").read_text()) for name in ("max", "current")
        )
        yield max(0, limit - taken + _of_files(_CGROUP / "memory.stat", ""))
    with suppress(OSError, ValueError):
        limit, taken = (
            int((old / f"memory.{name}_in_bytes").read_text()) for name in ("limit", "usage")
        )
        yield max(0, limit - taken + _of_files(old / "memory.stat", "total_"))


def _of_files(stat: Path, prefix: str) -> int:
    """Of what counts as taken: copies of files, as of weights just hashed, which the kernel drops
    when somebody wants the memory."""
    dropped = (f"{prefix}active_file", f"{prefix}inactive_file")
    lines = (line.split() for line in stat.read_text().splitlines())
    return sum(int(size) for name, size in lines if name in dropped)
