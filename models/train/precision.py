"""How numbers are computed in training: bfloat16 where it is fast, and attention with it."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


@cache
def has_fast_bf16(device_type: str) -> bool:
    """Whether matrix products in bf16 are faster there than in float32.

    True on CUDA, and on CPUs that multiply bf16 themselves (AMX, or AVX-512 BF16, where a step of
    the bundled denoiser took 0.64 of the time); other CPUs would only lose by it.
    """
    if device_type == "cuda":
        return True
    has = torch.cpu.get_capabilities() if device_type == "cpu" else {}
    return bool(has.get("amx_bf16") or has.get("avx512_bf16"))


@contextmanager
def low_precision(device: torch.device) -> Iterator[None]:
    """Autocast to bf16 where it is fast; elsewhere nothing changes.

    On CPU attention is written out as matrix products: torch's fused one takes twice as long
    backwards on the short sequences of captions and small feature maps.
    """
    plain = sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
    with plain, torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bf16(device.type)):
        yield
