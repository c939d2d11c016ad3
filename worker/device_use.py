"""How much of its device a worker uses."""

import os
import time
from pathlib import Path

import torch

__all__ = ["DeviceUse"]


class DeviceUse:
    """Looks at a GPU as its driver sees it; on CPU, at this process."""

    def __init__(self, device: torch.device, threads: int) -> None:
        self._device = device
        self._threads = threads
        self._cpu_s, self._looked_at = time.process_time(), time.monotonic()
        self._has_counter = True  # of utilisation, by NVIDIA's library

    def memory_bytes(self) -> dict[str, int]:
        """Bytes by kind: `used` and `total` of the device, `allocated` by this worker."""
        if self._device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self._device)
            allocated = torch.cuda.memory_allocated(self._device)
            return {"used": total - free, "total": total, "allocated": allocated}
        page = os.sysconf("SC_PAGE_SIZE")
        total, free = (os.sysconf(name) * page for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * page
        return {"used": total - free, "total": total, "allocated": resident}

    def utilization(self) -> float | None:
        """Share of the time since the last look in which it computed; None where none can tell."""
        return self._of_gpu() if self._device.type == "cuda" else self._of_cpu()

    def _of_gpu(self) -> float | None:
        if not self._has_counter:
            return None
        try:
            return torch.cuda.utilization(self._device) / 100
        except Exception:  # no nvidia-ml-py here, or a driver that does not count
            self._has_counter = False
            return None

    def _of_cpu(self) -> float:
        """Processor time of the process, of all that its threads could have had."""
        cpu_s, now = time.process_time(), time.monotonic()
        spent, passed = cpu_s - self._cpu_s, now - self._looked_at
        self._cpu_s, self._looked_at = cpu_s, now
        return min(1.0, spent / max(1e-9, passed * self._threads))
