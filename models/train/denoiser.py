"""Train the denoiser on noised pictures and the contexts of their captions."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.bundle import (
    CONFIG_FILE,
    DENOISER_FILE,
    BundleConfig,
    ScheduleConfig,
    read_config,
    save_config,
    save_weights,
)
from models.context import Clip, ClipReference, ContextEncoder, encode_text, load_clip
from models.layers import channels_last
from models.pictures import sheet, to_picture
from models.sampling import sample
from models.schedule import NoiseSchedule, noise_schedule
from models.train import parallel
from models.train.batches import Batch, Batches
from models.train.checkpoint import Checkpoint, RunOf, fingerprint
from models.train.ema import Ema
from models.train.loop import train
from models.train.muon import Muon
from models.train.precision import low_precision
from models.train.progress import Budget
from models.unet import Denoiser, Parameterisation, UNet, UNetConfig

GRID_PROMPTS = (
    "a red apple",
    "a cat face",
    "a yellow star",
    "a dog",
    "a pizza",
    "a blue car",
    "a rose",
    "a smiling face",
    "a house",
    "a fish",
    "a guitar",
    "a cactus",
    "an airplane",
    "a heart",
    "a cat inside an avocado",
    "a purple cat face",
)


@dataclass(frozen=True)
class DenoiserTraining:
    """What `avocat train denoiser` may be told."""

    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    context_dropout: float = 0.1
    min_snr_gamma: float = 5.0
    snr_floor: float = 0.25
    seed: int = 0


def loss_weight(
    schedule: NoiseSchedule, parameterisation: Parameterisation, gamma: float, floor: float = 0.0
) -> Tensor:
    """Min-SNR-γ weight of each timestep's squared error (Hang et al. 2023, section 3.4).

    `floor` is added to the weight of x_0's error: at the noisy end, where the context alone says
    what the picture will be, the SNR and with it that weight would go to nothing. Not so for ε,
    whose error stays of order 1 there: it would be magnified without bound.
    """
    snr = schedule.snr
    capped = snr.clamp(max=gamma)
    raised = capped + floor
    per = {"eps": capped / snr, "v": raised / (snr + 1), "denoised": raised}
    return per[parameterisation].float()


def target(
    parameterisation: Parameterisation, schedule: NoiseSchedule, x_0: Tensor, eps: Tensor, t: Tensor
) -> Tensor:
    """What the network is to predict, `[B, C, H, W]`."""
    if parameterisation == "eps":
        return eps
    if parameterisation == "denoised":
        return x_0
    alpha = schedule.per_row(schedule.alphas_cumprod.sqrt(), t, x_0)
    sigma = schedule.per_row((1 - schedule.alphas_cumprod).sqrt(), t, x_0)
    return alpha * eps - sigma * x_0


@torch.no_grad()
def dropped_contexts(
    clip: Clip, captions: list[str], dropout: float, generator: torch.Generator
) -> Tensor:
    """Contexts `[B, D]` of captions, a share `dropout` of them that of the empty prompt."""
    dropped = (torch.rand(len(captions), generator=generator) < dropout).tolist()
    shown = ["" if drop else text for text, drop in zip(captions, dropped, strict=True)]
    length = int(clip.model.context_length)  # type: ignore[arg-type]
    tokens = clip.tokenizer(shown, context_length=length)
    device = next(clip.model.parameters()).device
    with low_precision(device):
        return encode_text(clip.model, tokens.to(device)).float()


def stratified_timesteps(rows: int, length: int, generator: torch.Generator) -> Tensor:
    """One timestep from each of `rows` equal parts of the schedule, int64 `[rows]`.

    So every batch covers the whole of it, which steadies the loss.
    """
    share = (torch.arange(rows) + torch.rand(rows, generator=generator)) / rows
    return (share * length).long()


def noise_for(x_0: Tensor, seed: int) -> Tensor:
    """ε like `x_0`, drawn where that is: a CPU takes longer for it than a GPU for its step."""
    generator = torch.Generator(x_0.device).manual_seed(seed)
    return torch.randn(x_0.shape, generator=generator, device=x_0.device, dtype=x_0.dtype)


class DenoiserTrainer:
    """One network, its average, its optimiser, and the frozen CLIP that makes contexts."""

    def __init__(
        self, config: BundleConfig, clip: Clip, options: DenoiserTraining, device: torch.device
    ) -> None:
        torch.manual_seed(options.seed)
        self.config, self.clip, self.options, self.device = config, clip, options, device
        self.schedule = noise_schedule(**config.noise_schedule.model_dump())
        self.network = channels_last(UNet(config.denoiser).to(device))
        self.ema = Ema(self.network)
        self.weight = loss_weight(
            self.schedule, config.parameterisation, options.min_snr_gamma, options.snr_floor
        ).to(device)
        self.optimizers = self._optimizers()
        self.forward: Callable[..., Tensor] = parallel.synchronised(self.network)
        clip.model.to(device)

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        """Muon for the convolutions between stem and head, AdamW for all else."""
        inner: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        for name, weight in self.network.named_parameters():
            outer = weight.ndim < 4 or name.startswith(("stem.", "head."))
            (rest if outer else inner).append(weight)
        rate, decay = self.options.learning_rate, self.options.weight_decay
        adam = torch.optim.AdamW(rest, lr=rate, weight_decay=decay, betas=(0.9, 0.99), fused=True)
        return [Muon(inner, lr=rate, weight_decay=decay), adam]

    def compile(self) -> None:
        """Train through torch.compile, where it pays."""
        self.forward = torch.compile(self.forward)

    def step(self, batch: Batch, step: int, scale: float) -> dict[str, float]:
        """One update; returns the weighted `loss`."""
        seed = self.options.seed * 1_000_003 + step
        generator = torch.Generator().manual_seed(seed)
        rows = len(batch.pictures)
        x_0 = batch.pictures.to(self.device, memory_format=torch.channels_last, non_blocking=True)
        context = dropped_contexts(
            self.clip, batch.captions, self.options.context_dropout, generator
        )
        t = stratified_timesteps(rows, self.schedule.training_length, generator).to(self.device)
        eps = noise_for(x_0, seed)
        wanted = target(self.config.parameterisation, self.schedule, x_0, eps, t)
        with low_precision(self.device):
            out = self.forward(self.schedule.add_noise(x_0, eps, t), t, context)
        error = F.mse_loss(out.float(), wanted, reduction="none").mean((1, 2, 3))
        loss = (error * self.weight[t]).mean()
        self.network.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.options.learning_rate * scale
            optimizer.step()
        self.ema.update(self.network, step // parallel.world_size())
        return {"loss": loss.item()}

    def grid(self, file: Path) -> None:
        """Paint the grid prompts with the averaged weights."""
        encoder = ContextEncoder(self.clip, self.device)
        size = self.config.image_size
        denoiser = Denoiser(self.ema.average, self.schedule, self.config.parameterisation).to(
            self.device
        )
        shape = (self.config.channels, size, size)
        x = sample(
            denoiser,
            self.schedule,
            encoder.encode(GRID_PROMPTS),
            encoder.empty,
            range(len(GRID_PROMPTS)),
            shape,
            sampler="dpmpp_2m",
            steps=20,
            parameterisation=self.config.parameterisation,
        )
        sheet([to_picture(row) for row in x], 8, 2 * size).save(file)


def bundle_config(
    out: Path,
    name: str,
    unet: UNetConfig,
    parameterisation: Parameterisation,
    schedule: ScheduleConfig,
    clip: ClipReference,
) -> BundleConfig:
    """The configuration of the bundle that training writes.

    Where `out` holds one already, all else that it says stays: its defaults, its upscaler; but not
    turbo, which was distilled from other weights.
    """
    known = read_config(out).model_dump() if (out / CONFIG_FILE).exists() else {}
    trained = {
        "name": name,
        "denoiser": unet,
        "parameterisation": parameterisation,
        "noise_schedule": schedule,
        "clip": clip,
        "turbo": None,
    }
    return BundleConfig.model_validate({**known, **trained})


def clip_of(reference: ClipReference, out: Path) -> tuple[Clip, int]:
    """The CLIP named by a bundle configuration, and the width of its contexts."""
    clip = load_clip(reference, out)
    return clip, ContextEncoder(clip).width


def _run_of(config: BundleConfig, clip: Clip, options: DenoiserTraining) -> RunOf:
    """What a network cannot be trained on with another of."""
    return {
        "--image-size": config.image_size,  # which no weight's form tells
        "--parameterisation": config.parameterisation,
        "--schedule": config.noise_schedule.kind,
        "--zero-terminal-snr": config.noise_schedule.zero_terminal_snr,
        "a CLIP of sha256": fingerprint(clip.model),
        "--seed": options.seed,
        "--batch-size": options.batch_size,
    }


def train_denoiser(
    batches: Batches,
    out: Path,
    config: BundleConfig,
    clip: Clip,
    options: DenoiserTraining,
    budget: Budget,
    *,
    device: torch.device,
    compiled: bool = False,
    grid_every_s: float = 300.0,
) -> None:
    """Train until the budget is spent, resuming `out/denoiser.checkpoint`; writes the bundle."""
    trainer = DenoiserTrainer(config, clip, options, device)
    checkpoint = Checkpoint(
        out / "denoiser.checkpoint",
        trainer.optimizers,
        trainer.network,
        trainer.ema.average,
        of=_run_of(config, clip, options),
    )
    if compiled:
        trainer.compile()
    next_grid = 0.0

    def paint_now_and_then() -> None:
        nonlocal next_grid
        if budget.spent_s >= next_grid:
            next_grid = budget.spent_s + grid_every_s
            trainer.grid(out / "grid.png")

    done = train(
        "denoiser",
        trainer.step,
        batches,
        options.batch_size,
        budget,
        checkpoint,
        out / DENOISER_FILE,
        paint_now_and_then,
    )
    if parallel.rank() > 0:
        return
    trainer.grid(out / "grid.png")
    save_weights(trainer.ema.average, out / DENOISER_FILE)
    provenance = {
        "steps": done.step,
        "batch_size": options.batch_size * parallel.world_size(),
        "pictures_seen": done.pictures,
        "seconds": round(done.spent_s),
        "device": str(device),
        "seed": options.seed,
    }
    training = {**config.training, "denoiser": provenance}
    save_config(out, config.model_copy(update={"training": training}))
