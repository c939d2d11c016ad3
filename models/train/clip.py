"""Train a small CLIP on captioned pictures, its text tower distilled from a sentence encoder."""

import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.bundle import save_weights
from models.clip_library import open_clip
from models.context import encode_text
from models.replacing import replacing
from models.train.batches import Batch, Batches
from models.train.checkpoint import Checkpoint
from models.train.loop import train
from models.train.precision import low_precision
from models.train.progress import Budget
from models.train.teacher import Teacher

PATCH = 8
PIXEL_MEAN = PIXEL_STD = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class ClipTraining:
    """What `avocat train clip` may be told."""

    batch_size: int = 128
    width: int = 192
    learning_rate: float = 1e-3
    weight_decay: float = 0.02
    distillation: float = 3.0
    order: float = 1.0
    seed: int = 0


def model_config(image_size: int, width: int = 192) -> dict[str, Any]:
    """An open_clip model config: a small text tower, `width` a multiple of 32, and a smaller
    vision tower."""
    return {
        "embed_dim": width,
        "vision_cfg": {
            "image_size": image_size,
            "patch_size": PATCH,
            "width": max(32, width * 2 // 3 // 32 * 32),  # whole heads
            "head_width": 32,
            "layers": 4,
        },
        "text_cfg": {
            "context_length": 32,
            "vocab_size": 49408,
            "width": width,
            "heads": max(1, width // 32),
            "layers": 4,
        },
    }


def build(config: dict[str, Any]) -> tuple[Any, Any]:
    """The open_clip model of a config, random, with its tokenizer."""
    open_clip(whole=False)
    from open_clip import SimpleTokenizer
    from open_clip.model import CLIP

    tokenizer = SimpleTokenizer(context_length=config["text_cfg"]["context_length"])
    return CLIP(**config), tokenizer


def flatten(pictures: Tensor) -> Tensor:
    """Premultiplied RGBA `[B, 4, S, S]` in [-1, 1] on white, normalised for the image tower."""
    unit = (pictures + 1) / 2
    white = unit[:, :3] + (1 - unit[:, 3:])
    return (white - PIXEL_MEAN[0]) / PIXEL_STD[0]


class ClipTrainer:
    """Contrastive loss (open_clip's) on pictures and captions, cosine loss towards the teacher."""

    def __init__(
        self,
        config: dict[str, Any],
        options: ClipTraining,
        make_teacher: Callable[[Any], Teacher] | None,
        device: torch.device | None = None,
    ):
        torch.manual_seed(options.seed)
        self.options, self.config = options, config
        self.device = device or torch.device("cpu")
        self.model, self.tokenizer = build(config)
        from open_clip.loss import ClipLoss

        self.contrastive = ClipLoss()
        self.teacher = make_teacher(self.tokenizer) if make_teacher is not None else None
        self.project: nn.Linear | None = None
        if self.teacher is not None:
            self.teacher.start_embeddings(self.model.token_embedding)
            self.teacher.targets = self.teacher.targets.to(self.device)
            self.project = nn.Linear(config["embed_dim"], self.teacher.targets.shape[1])
            self.project.to(self.device)
        self.model.to(self.device)
        named = list(self.model.named_parameters())
        named += list(self.project.named_parameters()) if self.project is not None else []
        decayed = [p for n, p in named if p.ndim > 1 and "embedding" not in n]
        kept = [p for n, p in named if p.ndim <= 1 or "embedding" in n]
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
        """One update; returns the losses and the share of captions found first."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.learning_rate * scale
        with low_precision(self.device):
            pictures = flatten(batch.pictures.to(self.device))
            image = F.normalize(self.model.encode_image(pictures).float(), dim=-1)
            text = self._text(batch.captions)
        contrastive = self.contrastive(image, text, self.model.logit_scale.exp())
        order = self._order_loss(image, text, batch.swapped)
        distillation = self._distillation_loss(3 * len(image), step)
        loss = contrastive + self.options.order * order + self.options.distillation * distillation
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, math.log(100))
            first = (image @ text.T).argmax(1).cpu() == torch.arange(len(image))
        return {
            "loss": contrastive.item(),
            "order": order.item(),
            "distillation": distillation.item(),
            "r@1": first.float().mean().item(),
        }

    def _text(self, texts: list[str]) -> Tensor:
        return encode_text(self.model, self.tokenizer(texts).to(self.device)).float()

    def _order_loss(self, image: Tensor, text: Tensor, swapped: list[str | None]) -> Tensor:
        """Hard negatives for word order (Yuksekgonul et al. 2023): caption against its swap.

        The mean over the scenes that have an order, not over the batch: these are few, and their
        gradient would drown in that of the rest.
        """
        rows = [i for i, caption in enumerate(swapped) if caption is not None]
        if not rows:
            return torch.zeros((), device=self.device)
        with low_precision(self.device):
            wrong = self._text([c for c in swapped if c is not None])
        margin = (image[rows] * (text[rows] - wrong)).sum(-1) * self.model.logit_scale.exp()
        return F.softplus(-margin).mean()

    def _distillation_loss(self, count: int, step: int) -> Tensor:
        """One minus the cosine to the teacher, over phrases of captions and vocabulary."""
        if self.teacher is None or self.project is None:
            return torch.zeros((), device=self.device)
        rng = random.Random(f"distil:{self.options.seed}:{step}")
        chosen = self.teacher.draw(rng, count)
        phrases = [self.teacher.phrases[i] for i in chosen]
        with low_precision(self.device):
            student = self.project(self._text(phrases)).float()
        return 1 - F.cosine_similarity(student, self.teacher.targets[chosen]).mean()


def save_clip(model: nn.Module, config: dict[str, Any], folder: Path) -> None:
    """Write the folder that open_clip reads as `local-dir:`, weights in float16."""
    folder.mkdir(parents=True, exist_ok=True)
    preprocess = {"mean": PIXEL_MEAN, "std": PIXEL_STD}
    description = {"model_cfg": config, "preprocess_cfg": preprocess}
    with replacing(folder / "open_clip_config.json") as file:
        file.write((json.dumps(description, indent=2) + "\n").encode())
    save_weights(model, folder / "open_clip_model.safetensors")


def train_clip(
    batches: Batches,
    out: Path,
    options: ClipTraining,
    budget: Budget,
    teacher_path: str | None,
    kept: Path,
    device: torch.device,
) -> None:
    """Train until the budget is spent, resuming from `out/clip.checkpoint`; writes `out`.

    What the teacher in `teacher_path` says is kept in the file `kept`.
    """
    size = batches.data.pictures.shape[-1]
    phrases = [p for entry in batches.data.captions for p in (entry.name, *entry.keywords)]
    teacher = (
        partial(Teacher, teacher_path, phrases, width=options.width, kept=kept)
        if teacher_path is not None
        else None
    )
    trainer = ClipTrainer(model_config(size, options.width), options, teacher, device)
    checkpoint = Checkpoint(
        out / "clip.checkpoint",
        [trainer.optimizer],
        trainer.model,
        trainer.project,
        of={"--seed": options.seed, "--batch-size": options.batch_size},
    )
    weights = out / "open_clip_model.safetensors"
    train("clip", trainer.step, batches, options.batch_size, budget, checkpoint, weights)
    save_clip(trainer.model, trainer.config, out)
