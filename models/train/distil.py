"""Distil a bundle's denoiser into one of few steps: the preset `turbo`.

First *guidance distillation* (Meng et al. 2023, section 3.1): the student predicts in one forward
what the teacher predicts with guidance in two. Then *progressive distillation* in one go (Salimans
& Ho 2022, algorithm 2): the way from noise to picture is cut into as many segments as turbo has
steps, and where one starts, the student predicts in one step where the guided student ends it.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.bundle import TURBO_FILE, Bundle, Turbo, read_config, save_config, save_weights
from models.guidance import guide
from models.layers import channels_last
from models.pictures import sheet, to_picture
from models.sampling import Denoise, sample
from models.schedule import timesteps
from models.train import parallel
from models.train.batches import Batch, Batches
from models.train.checkpoint import Checkpoint, fingerprint
from models.train.denoiser import (
    GRID_PROMPTS,
    dropped_contexts,
    loss_weight,
    noise_for,
    stratified_timesteps,
    target,
)
from models.train.ema import Ema
from models.train.loop import train
from models.train.precision import low_precision
from models.train.progress import Budget
from models.unet import Denoiser, UNet


@dataclass(frozen=True)
class DistilTraining:
    """What `avocat train distil` may be told.

    `guidance_share` of the run distils guidance, the rest the steps; the guided student walks a
    segment in `substeps` steps.
    """

    batch_size: int = 64
    learning_rate: float = 3e-4
    steps: int = 6
    guidance_scale: float = 3.0
    guidance_share: float = 0.5
    substeps: int = 4
    context_dropout: float = 0.1
    min_snr_gamma: float = 5.0
    snr_floor: float = 0.25
    seed: int = 0


class _Guided(nn.Module):
    """The student as it was when it had learned guidance, and whether that time has come."""

    def __init__(self, network: UNet) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("ready", torch.zeros((), dtype=torch.bool))


class DistilTrainer:
    """Teacher, student, the student's average, and the guided student that steps are taught by."""

    def __init__(self, bundle: Bundle, options: DistilTraining, budget: Budget) -> None:
        torch.manual_seed(options.seed)
        self.bundle, self.options, self.budget = bundle, options, budget
        self.schedule, self.device = bundle.schedule, bundle.context.device
        self.teacher = self._eps(bundle.denoiser.network)
        self.network = self._copy().requires_grad_(True)
        self.ema = Ema(self.network)
        self.guided = _Guided(self._copy())
        self.weight = loss_weight(
            self.schedule,
            bundle.config.parameterisation,
            options.min_snr_gamma,
            options.snr_floor,
        ).to(self.device)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=options.learning_rate, weight_decay=0.0, fused=True
        )
        self.forward = parallel.synchronised(self.network)
        visited = timesteps("trailing", options.steps, self.schedule.training_length)
        self.starts = visited.to(self.device)  # of the segments, from noise to picture
        self.ends = torch.cat([self.starts[1:], self.starts.new_tensor([-1])])  # -1: the picture

    def _copy(self) -> UNet:
        network = UNet(self.bundle.config.denoiser)
        network.load_state_dict(self.bundle.denoiser.network.state_dict())
        return channels_last(network.to(self.device)).requires_grad_(False)

    def step(self, batch: Batch, step: int, scale: float) -> dict[str, float]:
        """One update; returns the weighted `loss` and which stage it belongs to."""
        stepping = self.budget.fraction >= self.options.guidance_share
        if stepping and not self.guided.ready:
            self.guided.network.load_state_dict(self.ema.average.state_dict())
            self.guided.ready.fill_(True)  # type: ignore[operator]
        seed = self.options.seed * 1_000_003 + step
        generator = torch.Generator().manual_seed(seed)
        x_0 = batch.pictures.to(self.device, memory_format=torch.channels_last, non_blocking=True)
        context = dropped_contexts(
            self.bundle.context.clip, batch.captions, self.options.context_dropout, generator
        )
        length = self.options.steps if stepping else self.schedule.training_length
        t = stratified_timesteps(len(x_0), length, generator).to(self.device)
        t = self.starts[t] if stepping else t
        noise = noise_for(x_0, seed)
        x_t = self.schedule.add_noise(x_0, noise, t)
        with torch.no_grad(), low_precision(self.device):
            aim = (self._leaving if stepping else self._guidance)(x_t, t, context)
        wanted = self._as_predicted(aim, x_t, t)
        with low_precision(self.device):
            out = self.forward(x_t, t, context)
        error = F.mse_loss(out.float(), wanted, reduction="none").mean((1, 2, 3))
        loss = (error * self.weight[t]).mean()
        self._update(loss, step, scale)
        return {"loss": loss.item(), "stage": 2.0 if stepping else 1.0}

    def _update(self, loss: Tensor, step: int, scale: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.learning_rate * scale
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.ema.update(self.network, step // parallel.world_size())

    def _guidance(self, x_t: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """The guided teacher's picture, in the range that samplers keep to."""
        empty = self.bundle.context.empty.expand_as(context)
        scale = x_t.new_full((len(x_t),), self.options.guidance_scale)
        eps = guide(self.teacher(x_t, t, context), self.teacher(x_t, t, empty), scale)
        return self._picture(x_t, eps, t)

    def _leaving(self, x_t: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """The picture that leads DDIM in one step from x_t, where a segment starts, to its end: to
        where the guided student gets in `substeps` steps."""
        end = self.ends[(t[:, None] == self.starts).long().argmax(1)]
        guided, x_end, now = self._eps(self.guided.network), x_t, t
        for done in range(1, self.options.substeps + 1):
            then = t - (t - end) * done // self.options.substeps
            picture = self._picture(x_end, guided(x_end, now, context), now)
            x_end, now = self._ddim(x_end, picture, now, then), then
        alpha, sigma = self._level(t, x_t)
        alpha_end, sigma_end = self._level(end, x_t)
        ratio = sigma_end / sigma
        return ((x_end - ratio * x_t) / (alpha_end - alpha * ratio)).clamp(-1, 1)

    def _eps(self, network: nn.Module) -> Denoise:
        """What a network says of ε, float32 whatever it is computed in."""
        reads = self.bundle.config.parameterisation
        denoiser = Denoiser(network, self.schedule, reads).to(self.device)
        return lambda x_t, t, context: denoiser.eps(x_t, t, context).float()

    def _level(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """√ᾱ and √(1-ᾱ) `[B, 1, 1, 1]`; timestep -1 is the picture itself."""
        table = torch.cat([self.schedule.alphas_cumprod, torch.ones(1, dtype=torch.float64)])
        kept = table.to(t.device)[t].reshape(-1, 1, 1, 1)
        return kept.sqrt().to(like.dtype), (1 - kept).sqrt().to(like.dtype)

    def _picture(self, x_t: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self._level(t, x_t)
        return ((x_t - sigma * eps) / alpha).clamp(-1, 1)

    def _as_predicted(self, picture: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """What the network is to predict so that `picture` is read from it."""
        alpha, sigma = self._level(t, x_t)
        eps = (x_t - alpha * picture) / sigma
        return target(self.bundle.config.parameterisation, self.schedule, picture, eps, t)

    def _ddim(self, x: Tensor, picture: Tensor, t: Tensor, then: Tensor) -> Tensor:
        """One step of DDIM (Song et al. 2021, eq. 12, η = 0)."""
        alpha, sigma = self._level(t, x)
        alpha_then, sigma_then = self._level(then, x)
        return alpha_then * picture + sigma_then * (x - alpha * picture) / sigma

    def grid(self, file: Path) -> None:
        """Paint the grid prompts with the averaged weights in turbo's steps."""
        encoder, config = self.bundle.context, self.bundle.config
        x = sample(
            self._eps(self.ema.average),
            self.schedule,
            encoder.encode(GRID_PROMPTS),
            encoder.empty,
            range(len(GRID_PROMPTS)),
            (config.channels, config.image_size, config.image_size),
            sampler="ddim",
            steps=self.options.steps,
            guidance_scale=1.0,
        )
        sheet([to_picture(row) for row in x], 8, 2 * config.image_size).save(file)


def train_distil(
    batches: Batches, out: Path, bundle: Bundle, options: DistilTraining, budget: Budget
) -> None:
    """Train until the budget is spent; turbo joins the bundle.

    Resumes `out/turbo.checkpoint`, unless the denoiser has been trained since.
    """
    trainer = DistilTrainer(bundle, options, budget)
    checkpoint = Checkpoint(
        out / "turbo.checkpoint",
        [trainer.optimizer],
        trainer.network,
        trainer.ema.average,
        trainer.guided,
        of={
            "denoiser": fingerprint(bundle.denoiser.network),
            "--turbo-steps": options.steps,
            "--guidance-scale": options.guidance_scale,
            "--guidance-share": options.guidance_share,
            "--seed": options.seed,
            "--batch-size": options.batch_size,
        },
        stale="denoiser",
    )
    weights = out / TURBO_FILE
    # Training the denoiser takes turbo out of the bundle: what lies there was taught by another.
    start = None if bundle.config.turbo is None else weights
    done = train("distil", trainer.step, batches, options.batch_size, budget, checkpoint, start)
    if parallel.rank() > 0:
        return
    trainer.grid(out / "turbo.png")
    save_weights(trainer.ema.average, weights)
    config = read_config(out)
    provenance = {
        "steps": done.step,
        "batch_size": options.batch_size * parallel.world_size(),
        "pictures_seen": done.pictures,
        "seconds": round(done.spent_s),
        "guidance_scale": options.guidance_scale,
        "guidance_share": options.guidance_share,
        "seed": options.seed,
    }
    training = {**config.training, "turbo": provenance}
    turbo = Turbo(steps=options.steps)
    save_config(out, config.model_copy(update={"turbo": turbo, "training": training}))
