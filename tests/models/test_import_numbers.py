"""Numbers in a folder with which no picture could be drawn are refused by name."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.errors import BundleError
from models.stable_diffusion.loading import import_folder
from tests.models.tiny_diffusers import UNET, change

pytestmark = pytest.mark.filterwarnings("ignore")


def _poisoned(file: str, number: float) -> Callable[[Path], None]:
    def damage(source: Path) -> None:
        state = load_file(source / file)
        state[sorted(state)[-1]].view(-1)[1] = number
        save_file(state, source / file)

    return damage


def _scheduler(**changes: Any) -> Callable[[Path], None]:
    return lambda source: change(source / "scheduler/scheduler_config.json", **changes)


def _autoencoder(**changes: Any) -> Callable[[Path], None]:
    return lambda source: change(source / "vae/config.json", **changes)


FAULTS = {
    "a vast size": (
        lambda at: change(at / "unet/config.json", sample_size=12499),
        r"size 99992x99992 should have at most as many pixels as 4096x4096",
    ),
    "a size in words": (
        lambda at: change(at / "unet/config.json", sample_size="large"),
        r"unet has sample_size 'large'; it should be a whole number, or two",
    ),
    "not a number": (
        _poisoned(UNET, math.nan),
        r"unet: up_blocks\S+ in diffusion_pytorch_model.safetensors holds .* NaN or infinite",
    ),
    "infinite": (
        _poisoned("text_encoder/model.safetensors", -math.inf),
        r"text_encoder: \S+ in model.safetensors holds numbers that are NaN or infinite",
    ),
    "no scale": (_autoencoder(scaling_factor=0), r"vae has scaling_factor 0; .* a number above 0"),
    "a scale of NaN": (_autoencoder(scaling_factor=math.nan), r"vae has scaling_factor nan; it"),
    "a null scale": (_autoencoder(scaling_factor=None), r"vae has scaling_factor None; it should"),
    "two means": (
        _autoencoder(latents_mean=[0, 0]),
        r"vae has latents_mean \[0, 0\]; .* 4 numbers",
    ),
    "no deviation": (_autoencoder(latents_std=[1, 1, 1, 0]), r"latents_std .* 4 numbers above 0"),
    "no betas": (_scheduler(trained_betas=[]), r"scheduler: trained_betas is \[\]: .* at least 1"),
    "a beta": (_scheduler(trained_betas=3), r"scheduler: trained_betas is 3: .* a valid tuple"),
    "betas of nothing": (
        _scheduler(trained_betas=[0.0] * 50),
        r"trained_betas.0 is 0.0: .* than 0",
    ),
    "a spacing": (_scheduler(timestep_spacing="wide"), r"scheduler: timestep_spacing is 'wide': "),
    "a list": (_scheduler(beta_schedule=["linear"]), r"beta_schedule .*; these are served: linear"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_numbers_that_cannot_be_are_refused(source: Path, tmp_path: Path, fault: str) -> None:
    damage, message = FAULTS[fault]
    damage(source)
    with pytest.raises(BundleError, match=message):
        import_folder(source, tmp_path / "m", "mine")
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_every_number_format_is_searched(source: Path, tmp_path: Path, kind: torch.dtype) -> None:
    state = {key: weight.to(kind) for key, weight in load_file(source / UNET).items()}
    save_file(state, source / UNET)
    assert import_folder(source, tmp_path / "m", "mine")
    state["conv_in.weight"].view(-1)[1] = math.nan
    save_file(state, source / UNET)
    with pytest.raises(BundleError, match=r"unet: conv_in.weight in .* NaN or infinite"):
        import_folder(source, tmp_path / "m", "mine")
