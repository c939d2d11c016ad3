"""Train the judge of `avocat evaluate`: a CLIP of another form than a bundle's, trained apart.

A residual convolutional image tower, no sentence encoder, its own draws; and another objective: a
picture belongs to its caption *and* to the name of each thing in it, so that the judge finds both
things of a composition. Its pictures are worn (moved, bent, blurred, noised), because it is to know
a cat that a denoiser drew softly, and not to be won over by the texture of one.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.context import encode_text
from models.layers import channels_last
from models.train.batches import Batch, Batches
from models.train.checkpoint import Checkpoint
from models.train.clip import build, flatten, save_clip
from models.train.loop import train
from models.train.precision import low_precision
from models.train.progress import Budget

SMALLEST = 32  # what the network reduces to one pixel
_COARSEST = 0.4  # share of the side that a picture is reduced to at most
_LOUDEST = 0.1  # standard deviation of the strongest noise, of the range [-1, 1]


@dataclass(frozen=True)
class JudgeTraining:
    """What `avocat train judge` may be told."""

    batch_size: int = 128
    width: int = 160
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    scale: float = 20.0
    seed: int = 1


def model_config(image_size: int, width: int = 160) -> dict[str, Any]:
    """An open_clip model config: CLIP's own residual network, and a shallow text tower."""
    return {
        "embed_dim": width,
        "vision_cfg": {
            "image_size": image_size,
            "layers": [1, 1, 2, 1],
            "width": 32,
            "head_width": 64,
        },
        "text_cfg": {
            "context_length": 32,
            "vocab_size": 49408,
            "width": width,
            "heads": max(1, width // 32),
            "layers": 2,
        },
    }


def wear(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Move, scale, bend, blur and noise `[B, 4, S, S]` in [-1, 1], each picture in its own way.

    Half of the batches lose resolution, to what a small native size would have left of it.
    """
    rows, side = len(pictures), pictures.shape[-1]

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator) * 2 - 1

    scale = 1.05 + 0.2 * uniform(rows)
    theta = torch.zeros(rows, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = scale
    theta[:, :, 2] = 0.12 * uniform(rows, 2)
    bend = F.interpolate(0.06 * uniform(rows, 2, 4, 4), (side, side), mode="bicubic")
    grid = F.affine_grid(theta, [rows, 4, side, side], align_corners=False)
    # Premultiplied and shifted to [0, 2], so that what comes in from outside is transparent.
    worn = F.grid_sample(pictures + 1, grid + bend.permute(0, 2, 3, 1), align_corners=False) - 1
    if torch.rand((), generator=generator) < 0.5:
        share = _COARSEST + (1 - _COARSEST) * float(torch.rand((), generator=generator))
        size = max(8, round(side * share))
        worn = F.interpolate(worn, (size, size), mode="bicubic", antialias=True)
        worn = F.interpolate(worn, (side, side), mode="bicubic", antialias=True)
    strength = _LOUDEST * torch.rand((rows, 1, 1, 1), generator=generator) ** 2
    return (worn + strength * torch.randn(worn.shape, generator=generator)).clamp(-1, 1)


def belonging(batch: Batch) -> tuple[list[str], Tensor]:
    """Every different text of a batch, and which belong to which picture, bool `[B, Q]`.

    A text belongs to a picture if it is its caption, or names one of its things; so the name of a
    thing belongs to every picture that shows it.
    """
    own = [{caption, *things} for caption, things in zip(batch.captions, batch.things, strict=True)]
    texts = list(dict.fromkeys(text for group in own for text in sorted(group)))
    return texts, torch.tensor([[text in group for text in texts] for group in own])


def soft_contrastive(logits: Tensor, belongs: Tensor) -> Tensor:
    """Cross-entropy both ways, with the probability shared out over all that belongs."""
    share = belongs.float()
    by_picture = F.cross_entropy(logits, share / share.sum(1, keepdim=True))
    by_text = F.cross_entropy(logits.T, (share / share.sum(0, keepdim=True)).T)
    return (by_picture + by_text) / 2


class JudgeTrainer:
    """The network and its optimiser; `step` is one update."""

    def __init__(
        self, config: dict[str, Any], options: JudgeTraining, device: torch.device | None = None
    ) -> None:
        torch.manual_seed(options.seed)
        self.device = device or torch.device("cpu")
        self.options, self.config = options, config
        self.model, self.tokenizer = build(config)
        self.model.visual = channels_last(self.model.visual)
        self.model.to(self.device)
        named = list(self.model.named_parameters())
        kept = [p for n, p in named if p.ndim <= 1 or "embedding" in n]
        decayed = [p for n, p in named if p.ndim > 1 and "embedding" not in n]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": options.weight_decay},
                {"params": kept, "weight_decay": 0.0},
            ],
            lr=options.learning_rate,
            betas=(0.9, 0.98),
            fused=True,
        )

    def step(self, batch: Batch, step: int, scale: float) -> dict[str, float]:
        """One update; returns the loss and how often a text of the picture is found first."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.learning_rate * scale
        generator = torch.Generator().manual_seed(self.options.seed * 1_000_003 + step)
        texts, belongs = belonging(batch)
        self.model.train()
        worn = flatten(wear(batch.pictures, generator))
        with low_precision(self.device):
            seen = self.model.encode_image(worn.to(self.device, memory_format=torch.channels_last))
            text = encode_text(self.model, self.tokenizer(texts).to(self.device)).float()
        logits = self.options.scale * F.normalize(seen.float(), dim=-1) @ text.T
        belongs = belongs.to(self.device)
        loss = soft_contrastive(logits, belongs)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        first = belongs.gather(1, logits.argmax(1, keepdim=True)).float().mean()
        return {"loss": loss.item(), "r@1": first.item()}


def train_judge(
    batches: Batches, out: Path, options: JudgeTraining, budget: Budget, device: torch.device
) -> None:
    """Train until the budget is spent, resuming from `out/judge.checkpoint`; writes `out`."""
    size = batches.data.pictures.shape[-1]
    trainer = JudgeTrainer(model_config(size, options.width), options, device)
    checkpoint = Checkpoint(
        out / "judge.checkpoint",
        [trainer.optimizer],
        trainer.model,
        of={"--seed": options.seed, "--batch-size": options.batch_size},
    )
    weights = out / "open_clip_model.safetensors"
    train("judge", trainer.step, batches, options.batch_size, budget, checkpoint, weights)
    save_clip(trainer.model, trainer.config, out)
