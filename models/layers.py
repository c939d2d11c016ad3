"""Blocks of the denoiser."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_Module = TypeVar("_Module", bound=nn.Module)
_RANDOM = {"normal_", "uniform_", "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_"}


def channels_last(module: _Module) -> _Module:
    """Lay convolution weights out for channels-last kernels, the faster ones on CPU and CUDA."""
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


class unfilled(TorchFunctionMode):  # a context manager
    """Within, modules are made without random numbers in them: their weights are to be loaded."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in _RANDOM:  # torch.nn.init's, and tensors' own
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


class shapes_only(unfilled):  # a context manager
    """Within, modules are made on the meta device, quickly: for some operations of open_clip's
    modules that change no shape, torch would import sympy and dynamo, a second's work."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in (Tensor.mul, Tensor.triu_):
            return args[0]
        if func is torch.randn:
            func = torch.empty
        return super().__torch_function__(func, types, args, kwargs)


def timestep_embedding(timestep: Tensor, width: int, max_period: float = 10_000.0) -> Tensor:
    """Sinusoids of the timestep (Vaswani et al. 2017, section 3.5). int64 `[B]` → `[B, width]`."""
    half = width // 2
    exponent = torch.arange(half, device=timestep.device, dtype=torch.float32) / half
    angle = timestep.float()[:, None] * torch.exp(-math.log(max_period) * exponent)
    return torch.cat([angle.cos(), angle.sin()], dim=1)


class ResBlock(nn.Module):
    """Two 3x3 convolutions around an adaptive group norm.

    The conditioning vector sets scale and shift of the second norm (Dhariwal & Nichol 2021,
    section 3), and the last convolution starts at zero so that the block starts as the identity.
    """

    def __init__(self, channels: int, conditioning: int, groups: int = 8) -> None:
        super().__init__()
        self.norm_in = nn.GroupNorm(groups, channels)
        self.conv_in = nn.Conv2d(channels, channels, 3, padding=1)
        self.modulation = nn.Linear(conditioning, 2 * channels)
        self.norm_out = nn.GroupNorm(groups, channels)
        self.conv_out = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, conditioning: Tensor) -> Tensor:
        """`x` `[B, C, H, W]`, `conditioning` `[B, D]` (already activated) → `[B, C, H, W]`."""
        h = self.conv_in(F.silu(self.norm_in(x)))
        scale, shift = self.modulation(conditioning)[:, :, None, None].chunk(2, dim=1)
        h = self.conv_out(F.silu(self.norm_out(h) * (1 + scale) + shift))
        out: Tensor = x + h
        return out


class Attention(nn.Module):
    """Self-attention over the pixels of a feature map, residual, starting as the identity."""

    def __init__(self, channels: int, head_width: int = 64, groups: int = 8) -> None:
        super().__init__()
        self.heads = max(1, channels // head_width)
        self.norm = nn.GroupNorm(groups, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` → `[B, C, H, W]`."""
        rows, channels, height, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(rows, 3, self.heads, -1, height * width)
        q, k, v = qkv.transpose(-1, -2).unbind(1)  # each [B, heads, HW, C / heads]
        h = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = x + self.out(h.transpose(-1, -2).reshape(rows, channels, height, width))
        return out


class Downsample(nn.Module):
    """Halve the side: every 2x2 block of pixels becomes one, by a linear map."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out


class Upsample(nn.Module):
    """Double the side: every pixel becomes a 2x2 block, by a linear map."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, 4 * channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.conv(x), 2)
