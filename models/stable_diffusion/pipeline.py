"""An imported model, loaded: U-Net, autoencoder and text towers behind the engine's interface."""

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

import torch
from PIL import Image
from torch import Tensor, nn

from models.model import Adapters, FreeSizes, Origin, Shape, Size
from models.pictures import fitted, fitted_mask, to_mask, to_tensor
from models.samplers import Sampler, Trajectory, trajectory
from models.schedule import NoiseSchedule
from models.stable_diffusion.config import PipelineConfig
from models.stable_diffusion.lora import applied
from models.stable_diffusion.lora_folder import LoraFolder
from models.stable_diffusion.text import TextEncoders

__all__ = ["Autoencoder", "LatentDecoder", "LatentDenoiser", "Pipeline"]


_ROUNDING = 1.1  # sizes of the same number of pixels differ as much


class LatentDenoiser(nn.Module):
    """A U-Net of diffusers, called with the parts of a context."""

    def __init__(self, network: nn.Module, *, sized: bool, guided: bool) -> None:
        """`sized`: its context has a pooled vector and sizes; `guided`: a guidance embedding."""
        super().__init__()
        self.network = network
        self.dtype: Final = next(network.parameters()).dtype
        self._sized = sized
        self._guided = guided

    def forward(
        self,
        x_t: Tensor,
        timestep: Tensor,
        states: Tensor,
        *more: Tensor,
        adapters: Sequence[Adapters | None] = (),
    ) -> Tensor:
        """`x_t` `[B, C, h, w]`, `timestep` `[B]`, `states` `[B, L, D]` → the prediction, float32.

        `adapters`: the LoRAs of each row. The network computes in the format of its weights.
        """
        x_t, states, *rest = (one.to(self.dtype) for one in (x_t, states, *more))
        added = {"text_embeds": rest[0], "time_ids": rest[1]} if self._sized else None
        with applied(adapters):
            out: Tensor = self.network(
                x_t,
                timestep,
                encoder_hidden_states=states,
                timestep_cond=rest[-1] if self._guided else None,
                added_cond_kwargs=added,
                return_dict=False,
            )[0]
        return out.float()


class LatentDecoder(nn.Module):
    """The half of diffusers' autoencoder that makes pixels: `[B, C, h, w]` → `[B, 3, H, W]`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, z: Tensor) -> Tensor:
        """Both in the format of its weights."""
        decode: Callable[..., tuple[Tensor]] = self.network.decode  # type: ignore[assignment]
        return decode(z, return_dict=False)[0]


class Autoencoder:
    """Latents as the denoiser knows them, to pixels; for several threads.

    On a GPU it works on a stream of its own, so that the steps of other pictures need not wait.
    """

    def __init__(self, network: nn.Module, native: Size) -> None:
        """`native`: the model's own size in pixels; pictures of more are decoded in tiles."""
        config = network.config
        self.network = network
        self.decoder: nn.Module = LatentDecoder(network)
        self._device = next(network.parameters()).device
        self._lock, self._stream = threading.Lock(), _own_stream(self._device)
        self.dtype: Final = next(network.parameters()).dtype
        self.channels = int(config.latent_channels)  # type: ignore[union-attr, arg-type]
        self.scale = 2 ** (len(config.block_out_channels) - 1)  # type: ignore[union-attr, arg-type]
        self._factor = float(config.scaling_factor)  # type: ignore[union-attr, arg-type]
        self._mean = getattr(config, "latents_mean", None)
        self._std = getattr(config, "latents_std", None)
        self._whole = _ROUNDING * prod(native) / self.scale**2  # latents

    def executed(self, decoder: nn.Module) -> "Autoencoder":
        """The same with what executes its decoder, for all that need not be cut into tiles."""
        other = copy.copy(self)
        other.decoder = decoder
        return other

    def decode(self, latents: Tensor) -> Tensor:
        """`[C, h, w]` of any device → `[3, H, W]`, about in [-1, 1], on CPU.

        Large ones in tiles that overlap, as diffusers cuts and blends them, so that the memory of
        one tile is enough.
        """
        with self._beside(latents):
            return self._decode(latents).cpu()

    def _decode(self, latents: Tensor) -> Tensor:
        z = latents.to(self._device)[None].float() / self._factor
        if self._mean is not None and self._std is not None:
            mean, std = (z.new_tensor(one).reshape(1, -1, 1, 1) for one in (self._mean, self._std))
            z = z * std + mean
        z = z.to(self.dtype)
        if z.shape[2] * z.shape[3] > self._whole:
            tiled: Callable[..., tuple[Tensor]] = self.network.tiled_decode  # type: ignore[assignment]
            return tiled(z, return_dict=False)[0][0].float()
        pixels: Tensor = self.decoder(z)
        return pixels[0].float()

    @contextmanager
    def _beside(self, given: Tensor) -> Iterator[None]:
        """Work on its own stream; behind all of the default one only if that has the `given`."""
        if self._stream is None:
            yield
            return
        with self._lock, torch.cuda.stream(self._stream):
            if given.device.type == "cuda":
                self._stream.wait_stream(torch.cuda.default_stream(given.device))
            yield

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """`[3, H, W]` in [-1, 1] → mean and standard deviation of its latents, `[C, h, w]` each."""
        encode: Callable[..., Any] = self.network.encode  # type: ignore[assignment]
        posterior = encode(pixels[None].to(self.dtype), return_dict=False)[0]
        mean, std = (one.float() * self._factor for one in (posterior.mean, posterior.std))
        if self._mean is not None and self._std is not None:
            shift, by = (
                mean.new_tensor(one).reshape(1, -1, 1, 1) for one in (self._mean, self._std)
            )
            mean, std = (mean - shift * self._factor) / by, std / by
        return mean[0], std[0]


def _own_stream(device: torch.device) -> Any:
    if device.type != "cuda":
        return None
    return torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Pipeline:
    """A loaded model of the family; see `models.model.Model`."""

    config: PipelineConfig
    schedule: NoiseSchedule
    denoiser: nn.Module  # a `LatentDenoiser`, or what executes one
    context: TextEncoders
    autoencoder: Autoencoder
    sha256: str
    path: Path

    @property
    def clip(self) -> float | None:
        """Latents have no bound."""
        return None

    @property
    def channels(self) -> int:
        """RGB."""
        return 3

    @property
    def sizes(self) -> tuple[Size, ...]:
        """Those of the configuration."""
        return self.config.sizes

    @property
    def free_sizes(self) -> FreeSizes | None:
        """Those of the configuration."""
        return self.config.free_sizes

    def shape(self, size: Size) -> Shape:
        """Of the latents of a picture.

        Raises:
            ValueError: it draws no such size.
        """
        free = self.config.free_sizes
        if size not in self.sizes and not (free is not None and free.allow(size)):
            drawn = ", ".join(f"{width}x{height}" for width, height in self.sizes)
            others = f", and {free}" if free is not None else ""
            raise ValueError(f"size is '{size[0]}x{size[1]}'; this model draws {drawn}{others}")
        scale = self.autoencoder.scale
        return (self.autoencoder.channels, size[1] // scale, size[0] // scale)

    def trajectory(self, sampler: Sampler, steps: int, skipped: int = 0) -> Trajectory:
        """The way of one row, but for its first `skipped` steps.

        Raises:
            ScheduleError: a sampler it has not, more steps than that one takes, or none left.
        """
        layout = self.config.layout.layout(self.schedule)
        reads = self.config.parameterisation
        return trajectory(
            self.schedule, sampler, steps, layout, skipped=skipped, parameterisation=reads
        )

    @torch.inference_mode()
    def take_in(self, picture: Image.Image, mask: Image.Image | None, size: Size) -> Origin:
        """Latents of the picture on white; alone, so never another batch shape."""
        pixels = to_tensor(fitted(picture, size), self.channels)
        mean, std = self.autoencoder.encode(pixels.to(self.context.device))
        kept = None
        if mask is not None:  # the pixel at each latent's corner decides, as in diffusers
            scale = self.autoencoder.scale
            kept = to_mask(fitted_mask(mask, size))[:, ::scale, ::scale]
        return Origin(mean.cpu(), std.cpu(), kept)

    def lora_folder(self, path: Path) -> LoraFolder:
        """The LoRAs in a folder; see `models.model.Model`."""
        towers = [tower.model for tower in self.context.towers]
        names = ("text_encoder", "text_encoder_2")
        networks: dict[str, nn.Module] = dict(zip(names, towers, strict=False))
        networks["unet"] = self.denoiser.get_submodule("network")
        return LoraFolder(path, networks, self.context.device)

    @torch.inference_mode()
    def develop(self, x: Tensor, size: Size) -> Tensor:
        """Finished latents `[C, h, w]` as a picture `[3, H, W]`; alone, so never another batch."""
        return self.autoencoder.decode(x)

    @torch.inference_mode()
    def preview(self, denoised: Tensor) -> Tensor:
        """Latents on their way as a picture."""
        return self.autoencoder.decode(denoised)
