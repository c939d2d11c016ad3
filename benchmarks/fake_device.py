"""A worker whose device sleeps: `python -m benchmarks.fake_device`, else as `python -m worker`.

A call of its network takes BENCHMARK_CALL_S seconds and no processor, so that a small machine hosts
several workers. All else is the worker's own: queue, prompts, samplers, encoding, storage.
"""

import os
import sys
import time
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor

from models.bundle import Bundle
from worker import start
from worker.__main__ import main
from worker.runtimes.choice import Measured

__all__ = ["CALL_S", "sleeping"]

CALL_S: Final = "BENCHMARK_CALL_S"


def sleeping(bundle: Bundle, seconds: float) -> Bundle:
    """The bundle with a network that answers zeros after so many seconds."""

    def denoise(x: Tensor, timestep: Tensor, *context: Tensor) -> Tensor:
        time.sleep(seconds)
        return torch.zeros_like(x)

    return replace(bundle, denoiser=denoise)  # type: ignore[arg-type]


if __name__ == "__main__":
    chosen = start.with_runtime
    seconds = float(os.environ[CALL_S])

    def with_sleep(bundle: Bundle, **how: Any) -> tuple[Bundle, Measured]:
        executed, measured = chosen(bundle, **how)
        return sleeping(executed, seconds), measured

    start.with_runtime = with_sleep
    sys.exit(main())
