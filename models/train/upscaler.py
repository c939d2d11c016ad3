"""Train the x2 upscaler on the drawings at 96 pixels and their halves."""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.bundle import UPSCALER_FILE, read_config, save_config, save_weights
from models.layers import channels_last
from models.pictures import sheet, to_picture
from models.train.batches import Batch, Batches
from models.train.checkpoint import Checkpoint
from models.train.loop import train
from models.train.progress import Budget
from models.upscaler import Upscaler, UpscalerConfig


@dataclass(frozen=True)
class UpscalerTraining:
    """What `avocat train upscaler` may be told. `noise` is the std of what a denoiser leaves."""

    batch_size: int = 16
    learning_rate: float = 1e-3
    noise: float = 0.04
    crop: int = 64
    seed: int = 0


def pairs(pictures: Tensor, options: UpscalerTraining, step: int) -> tuple[Tensor, Tensor]:
    """Pictures `[B, 4, crop, crop]` in [-1, 1] and their halves, slightly blurred and noised.

    By turns crops at full size, and whole pictures reduced to the crop's size: strokes as fine as
    those of a small native size, and as those of its double.
    """
    generator = torch.Generator().manual_seed(options.seed * 1_000_003 + step)
    top, left = torch.randint(0, pictures.shape[-1] - options.crop + 1, (2,), generator=generator)
    large = pictures[..., top : top + options.crop, left : left + options.crop]
    if step % 2:
        side = (options.crop, options.crop)
        large = F.interpolate(pictures, size=side, mode="bicubic", antialias=True)
    small = F.interpolate(large, scale_factor=0.5, mode="bicubic", antialias=True)
    strength = options.noise * torch.rand((len(small), 1, 1, 1), generator=generator)
    softened = F.avg_pool2d(F.pad(small, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    blur = torch.rand((len(small), 1, 1, 1), generator=generator) * 0.5
    small = small + blur * (softened - small)
    return large, small + strength * torch.randn(small.shape, generator=generator)


def train_upscaler(
    batches: Batches, out: Path, options: UpscalerTraining, budget: Budget, device: torch.device
) -> None:
    """Train until the budget is spent; writes the weights and adds them to `bundle.json`."""
    torch.manual_seed(options.seed)
    config = UpscalerConfig()
    network = channels_last(Upscaler(config).to(device))
    optimizer = torch.optim.AdamW(network.parameters(), lr=options.learning_rate)
    checkpoint = Checkpoint(
        out / "upscaler.checkpoint",
        [optimizer],
        network,
        of={"--seed": options.seed, "--batch-size": options.batch_size},
    )

    def step_once(batch: Batch, step: int, scale: float) -> dict[str, float]:
        large, small = pairs(batch.pictures, options, step)
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * scale
        loss = F.l1_loss(network(small.to(device)), large.to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        return {"l1": loss.item()}

    weights = out / UPSCALER_FILE
    done = train("upscaler", step_once, batches, options.batch_size, budget, checkpoint, weights)
    _finish(network, config, batches, out, {"steps": done.step, "seconds": round(done.spent_s)})


@torch.no_grad()
def _finish(
    network: Upscaler,
    config: UpscalerConfig,
    batches: Batches,
    out: Path,
    provenance: dict[str, int],
) -> None:
    save_weights(network, out / UPSCALER_FILE)
    bundle = read_config(out)
    training = {**bundle.training, "upscaler": provenance}
    save_config(out, bundle.model_copy(update={"upscaler": config, "training": training}))
    network.cpu()
    large = batches.draw(10**9, 8).pictures
    small = F.interpolate(large, scale_factor=0.5, mode="bicubic", antialias=True)
    rows = [*small, *network(small), *large]
    sheet([to_picture(row) for row in rows], 8, 192).save(out / "upscaler.png")
