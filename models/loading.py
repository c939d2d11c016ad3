"""Loads what a folder with a `bundle.json` holds, of whichever kind it is."""

from pathlib import Path

import torch

from models.bundle import load_bundle, read_entry
from models.errors import BundleError
from models.model import Model

__all__ = ["load_model"]


def load_model(
    path: Path,
    device: torch.device | str = "cpu",
    preset: str = "",
    dtype: torch.dtype = torch.float32,
) -> Model:
    """Load a bundle or an imported model onto `device`, every file's hash checked.

    `preset` is one of a bundle of our own; imported models have none. `dtype` is the format of
    an imported model's weights; a bundle's are float32, and its runtime rounds what it likes.

    Raises:
        BundleError: a file is missing, damaged, or does not fit; or memory does not suffice.
    """
    path = Path(path)
    entry = read_entry(path)
    if entry.get("kind") != "stable_diffusion":
        return load_bundle(path, device, preset)
    if preset:
        raise BundleError(f"there is no preset {preset!r}: imported models have none")
    # Here, for these need packages that other models do not.
    from models.stable_diffusion.loading import load_pipeline, read_pipeline_config

    return load_pipeline(path, read_pipeline_config(entry), device, dtype)
