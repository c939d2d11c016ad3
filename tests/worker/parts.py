"""Bundles and storages that misbehave in a chosen way."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from app.storage.base import StorageError
from app.storage.folder import FolderStorage
from models.bundle import Bundle

Denoise = Callable[[Tensor, Tensor, Tensor], Tensor]


def with_denoiser(bundle: Bundle, change: Callable[[Denoise], Denoise]) -> Bundle:
    return replace(bundle, denoiser=change(bundle.denoiser))  # type: ignore[arg-type]


def slowed(bundle: Bundle, seconds: float) -> Bundle:
    """Each call of the network takes that much longer."""

    def change(denoise: Denoise) -> Denoise:
        def slow(x: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
            time.sleep(seconds)
            return denoise(x, timestep, context)

        return slow

    return with_denoiser(bundle, change)


def broken_for(bundle: Bundle, prompt: str) -> Bundle:
    """Rows of this prompt come out as NaN."""
    marked = bundle.context.encode([prompt])[0]

    def change(denoise: Denoise) -> Denoise:
        def broken(x: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
            out = denoise(x, timestep, context)
            out[(context == marked).all(1)] = torch.nan
            return out

        return broken

    return with_denoiser(bundle, change)


def failing_device(bundle: Bundle, after: int) -> Bundle:
    """The network raises at its call number `after` and at all later ones."""
    calls = 0

    def change(denoise: Denoise) -> Denoise:
        def fail(x: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            if calls > after:
                raise RuntimeError("device-side assert triggered")
            return denoise(x, timestep, context)

        return fail

    return with_denoiser(bundle, change)


class FullDisk(FolderStorage):
    """Refuses the first `times` writes of images whose index is `at`."""

    def __init__(self, root: Path, times: int, at: int = 0) -> None:
        super().__init__(root)
        self._times = times
        self._at = f"_{at}.png"

    def write(self, name: str, data: bytes) -> None:
        if name.endswith(self._at) and self._times > 0:
            self._times -= 1
            raise StorageError(f"image {name!r} could not be stored: No space left on device")
        super().write(name, data)


def stored_files(root: Path) -> list[str]:
    """Names of all files under a storage's root."""
    return sorted(path.name for path in root.rglob("*") if path.is_file())
