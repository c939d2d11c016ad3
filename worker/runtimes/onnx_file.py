"""The network as an ONNX file for one batch shape, in a form that its runtimes need less time for.

Each change leaves what is computed as it is but for the last bits: fewer passes over feature maps,
and copies of whole runs of channels where single numbers were moved.
"""

import copy
import hashlib
import os
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from models.layers import ResBlock, Upsample
from models.unet import UNet

__all__ = ["FORM", "INPUTS", "OUTPUT", "onnx_file"]

FORM: Final = 2  # counted up when what is written changes
INPUTS: Final = ("x", "timestep", "context")
OUTPUT: Final = "out"
_OPSET: Final = 17


def onnx_file(network: UNet, arguments: tuple[Tensor, ...], file: Path) -> str:
    """Path of the network as ONNX for arguments of just these shapes, written if it is not whole.

    Raises:
        ValueError: it cannot be written.
    """
    digest = file.with_suffix(".sha256")
    with suppress(OSError, ValueError):
        if hashlib.sha256(file.read_bytes()).hexdigest() == digest.read_text("ascii"):
            return str(file)
    try:
        exported = _exported(network, arguments, file.parent)
        _replace(file, exported)
        _replace(digest, hashlib.sha256(exported).hexdigest().encode())
    except OSError as fault:
        raise ValueError(
            f"{file} cannot be written: {fault.strerror}; AVOCAT_RUNTIME=eager needs no file"
        ) from None
    return str(file)


def _exported(network: UNet, arguments: tuple[Tensor, ...], folder: Path) -> bytes:
    with tempfile.TemporaryDirectory(dir=folder) as own, warnings.catch_warnings():
        file = Path(own, "network.onnx")
        warnings.simplefilter("ignore")  # about tracing; the result is checked against eager
        torch.onnx.export(
            _rewritten(network),
            arguments,
            str(file),
            input_names=INPUTS,
            output_names=[OUTPUT],
            opset_version=_OPSET,
            dynamo=False,  # the other exporter needs one more package
        )
        return file.read_bytes()


def _rewritten(network: UNet) -> UNet:
    """A copy, for the network may draw meanwhile."""
    network = copy.deepcopy(network)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, ResBlock):
                _fold(module)
        for i, module in enumerate(network.upsample):
            if isinstance(module, Upsample):
                network.upsample[i] = _BlocksOfChannels(module.conv)
    return network


def _fold(block: ResBlock) -> None:
    """Let the conditioning set what the second norm's own scale and shift make of its own.

    (w n + b) (1 + s) + t = n (1 + s') + t' with s' = w (1 + s) - 1 and t' = b (1 + s) + t, both
    linear in the conditioning as s and t are.
    """
    norm, linear = block.norm_out, block.modulation
    w, b = norm.weight, norm.bias
    (scale, shift), (scale_0, shift_0) = linear.weight.chunk(2), linear.bias.chunk(2)
    weights = torch.cat([w[:, None] * scale, b[:, None] * scale + shift])
    linear.bias.copy_(torch.cat([w * (1 + scale_0) - 1, b * (1 + scale_0) + shift_0]))
    linear.weight.copy_(weights)
    block.norm_out = nn.GroupNorm(norm.num_groups, norm.num_channels, norm.eps, affine=False)


class _BlocksOfChannels(nn.Module):
    """As `Upsample`, with the channels of a pixel side by side until the pixels are in place."""

    def __init__(self, conv: nn.Conv2d) -> None:
        """`conv`: the 1x1 convolution before the pixel-shuffle."""
        super().__init__()
        self.channels = conv.out_channels // 4
        order = torch.arange(conv.out_channels).reshape(self.channels, 4).T.flatten()
        self.linear = nn.Linear(conv.in_channels, conv.out_channels)
        self.linear.weight.copy_(conv.weight[order, :, 0, 0])
        self.linear.bias.copy_(conv.bias[order])  # type: ignore[index]

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` → `[B, C', 2 H, 2 W]`."""
        rows, channels, height, width = x.shape
        pixels = x.reshape(rows, channels, height * width).transpose(1, 2)
        blocks = self.linear(pixels).reshape(rows, height, width, 2, 2 * self.channels)
        larger = blocks.transpose(2, 3).reshape(rows, 4 * height * width, self.channels)
        out: Tensor = larger.transpose(1, 2).reshape(rows, self.channels, 2 * height, 2 * width)
        return out


def _replace(file: Path, content: bytes) -> None:
    """Never half of it, whoever else writes it."""
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        part.replace(file)
    except OSError:
        part.unlink(missing_ok=True)
        raise
