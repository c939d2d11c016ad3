"""Memory of a device: how much is free, what a model needs, and the errors that say it ran out."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from models.memory import free_bytes

__all__ = ["check_fits", "free_bytes", "give_back", "has_room", "in_words", "ran_out"]

# What torch's allocator of CPU memory, ONNX Runtime and OpenVINO say; none has a class for it.
_SAYINGS = (
    "can't allocate memory",
    "not enough memory",
    "failed to allocate memory",
    "bad_alloc",
    "bad allocation",
    "out of memory",
)


def ran_out(fault: BaseException) -> bool:
    """Whether an error says that there was no memory left for what was asked."""
    if isinstance(fault, MemoryError | torch.OutOfMemoryError):
        return True
    if not isinstance(fault, RuntimeError) and not type(fault).__module__.startswith("onnxruntime"):
        return False
    said = str(fault).lower()
    return any(saying in said for saying in _SAYINGS)


def check_fits(bundle: Path, device: torch.device) -> None:
    """Refuse a bundle whose weights alone are more than the device has free.

    Raises:
        ValueError: with both sizes.
    """
    needed, free = _weights_bytes(bundle), free_bytes(device)
    if needed > free:
        raise ValueError(
            f"bundle {bundle.name} has {in_words(needed)} of weights, but {device} has only "
            f"{in_words(free)} of memory free; take a smaller bundle, or a device with more memory"
        )


@contextmanager
def has_room(bundle: str, device: torch.device) -> Iterator[None]:
    """Say it in a sentence when memory runs out in it.

    Raises:
        ValueError: with the sizes.
    """
    try:
        yield
    except Exception as fault:
        if not ran_out(fault):
            raise
        raise ValueError(
            f"bundle {bundle} does not fit: {device} had {free_bytes(device) / 1e9:.1f} GB of "
            f"memory free when it ran out ({(str(fault) or repr(fault)).splitlines()[0]})"
        ) from fault


def give_back(device: torch.device) -> None:
    """Let others have what was freed but is still kept for this process."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    with suppress(OSError, AttributeError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)


def _weights_bytes(bundle: Path) -> int:
    return sum(file.stat().st_size for file in bundle.rglob("*.safetensors"))


def in_words(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
