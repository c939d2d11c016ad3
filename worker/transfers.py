"""Between the memory of the host and that of a device, without waiting for what the device is at.

A copy from or to plain memory waits until a GPU has done all that was asked of it before; one that
concerns pinned memory takes its place behind that, and the host goes on.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["fetch", "reached", "send"]


def send(values: Tensor, device: torch.device) -> Tensor:
    """The same on the device."""
    if device.type != "cuda" or values.device.type == "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def fetch(values: Tensor) -> Tensor:
    """The same in the host's memory; of what a GPU has, it is there once `reached` says so."""
    if values.device.type != "cuda":
        return values
    there = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    return there.copy_(values, non_blocking=True)


def reached(device: torch.device) -> Callable[[], None]:
    """Waits until the device has done what it was asked to do so far, and nothing after that."""
    if device.type != "cuda":
        return lambda: None
    mark: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
    mark.record(torch.cuda.current_stream(device))
    return mark.synchronize  # type: ignore[no-any-return]
