"""Memory of a device, and of the machine it is in."""

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
    try:  # a container may have less than the machine
        limit = int((_CGROUP / "memory.max").read_text())
        return min(available, max(0, limit - int((_CGROUP / "memory.current").read_text())))
    except (OSError, ValueError):  # no limit
        return available
