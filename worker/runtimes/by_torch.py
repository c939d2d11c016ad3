"""What executes a network without `choice`: plain torch, and on a GPU CUDA graphs.

Imported models have nothing else; a bundle is drawn so until its runtime is built.
"""

from dataclasses import replace
from pathlib import Path
from typing import Final

import structlog
import torch

from app.settings import Precision
from models.bundle import Bundle
from models.model import Model
from models.stable_diffusion.pipeline import Pipeline
from models.unet import Denoiser
from worker.rows import blank_batch
from worker.runtimes.graphs import Graphed

__all__ = [
    "imported_dtype",
    "runtime_name",
    "with_fused_decoder",
    "with_fused_graph",
    "with_graphs",
]

_log = structlog.get_logger()

_FORMATS: Final = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
_SUFFIX: Final = {torch.float32: "", torch.float16: "-fp16", torch.bfloat16: "-bf16"}


def imported_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The format of their weights that a setting names; on CPU 16 bits are mostly slower."""
    if precision == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    return _FORMATS[precision]


def with_graphs(model: Model, *, exact: bool = True) -> Model:
    """The model with its network as CUDA graphs, if it is on a GPU.

    Not where batches are not `exact`: their shape varies, and graphs are of one each.
    """
    if model.context.device.type != "cuda" or not exact:
        return model
    if isinstance(model, Bundle):
        plain = model.denoiser
        graphed = Denoiser(Graphed(plain.network), plain.schedule, plain.parameterisation)
        return replace(model, denoiser=graphed.eval().to(model.context.device))
    if isinstance(model, Pipeline):
        return replace(model, denoiser=Graphed(model.denoiser))
    return model


def with_fused_graph(model: Model, rows: int, folder: Path) -> Model:
    """An imported model with the graph of its native size made by torch's compiler.

    For Stable Diffusion 1.5 that took 72 s on 16 cores, and a call two thirds of the time from
    then on (H100, 8 rows: 19 ms instead of 30).
    """
    graphed = with_graphs(model)
    if isinstance(graphed.denoiser, Graphed):
        graphed.denoiser.fuse(blank_batch(model, rows), folder)
        if isinstance(graphed, Pipeline):
            return with_fused_decoder(graphed, folder)
    return graphed


def with_fused_decoder(model: Pipeline, folder: Path) -> Pipeline:
    """An imported model whose pixels, in its native size, are made by what torch's compiler fused.

    As it was, where that fails: the U-Net is worth more.
    """
    plain = model.autoencoder
    decoder = Graphed(plain.decoder, records=False)
    latents = torch.zeros(1, *model.shape(model.sizes[0]), device=model.context.device)
    try:
        decoder.fuse([latents.to(plain.dtype)], folder)
    except Exception as fault:
        _log.warning("decoder not compiled", reason=str(fault) or repr(fault))
        return model
    return replace(model, autoencoder=plain.executed(decoder))


def runtime_name(model: Model) -> str:
    """What executes its network without one of `choice`'s runtimes, with its version."""
    denoiser, kind = model.denoiser, "eager"
    if isinstance(denoiser, Denoiser):
        denoiser = denoiser.network
    if isinstance(denoiser, Graphed):
        kind = "compile" if denoiser.is_fused else "graphs"
        denoiser = denoiser.network
    suffix = _SUFFIX[getattr(denoiser, "dtype", torch.float32)]
    return f"{kind}{suffix} {torch.__version__}"
