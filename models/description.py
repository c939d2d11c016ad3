"""What the files of a model say of it before any weight is loaded."""

import hashlib
import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path

from safetensors import SafetensorError, safe_open

from models.bundle import (
    CLIP_FOLDER,
    CONFIG_FILE,
    DENOISER_FILE,
    TURBO_FILE,
    UPSCALER_FILE,
    read_config,
    read_entry,
)
from models.context import LOCAL_PREFIX
from models.errors import BundleError
from models.model import FreeSizes, ModelConfig, Size

__all__ = ["Description", "describe_model"]

_FLOAT32 = 4  # bytes: weights are loaded as what is asked, whatever the files have
_USUAL_CONTEXT = 77  # tokens, of OpenAI's and OpenCLIP's text towers


@dataclass(frozen=True)
class Description:
    """A model that can be loaded. `sha256` is what the loaded one will have.

    `source` is the folder of its weights, `weights_bytes` the memory that they take when loaded.
    """

    config: ModelConfig
    sha256: str
    path: Path
    source: Path
    weights_bytes: int
    sizes: tuple[Size, ...]
    free_sizes: FreeSizes | None
    channels: int
    training_length: int
    context_length: int


def describe_model(path: Path, preset: str = "", itemsize: int = _FLOAT32) -> Description:
    """Read `bundle.json` and the headers of the weights that it names; no hash is computed.

    `itemsize`: bytes of each weight of an imported model; a bundle's are loaded in float32.

    Raises:
        BundleError: a file is missing or cannot be read, or it is not of this form.
    """
    entry = read_entry(path)
    if entry.get("kind") == "stable_diffusion":
        return _imported(path, itemsize)
    config = read_config(path).preset(preset)
    names = [TURBO_FILE if preset else DENOISER_FILE]
    names += [UPSCALER_FILE] if config.upscaler is not None else []
    files = [path / name for name in names]
    files += sorted((path / CLIP_FOLDER).glob("*.safetensors"))
    side = config.image_size
    sha256 = _sha256(path / CONFIG_FILE)
    if preset:
        sha256 = hashlib.sha256(f"{sha256}:{preset}".encode()).hexdigest()
    return Description(
        config=config,
        sha256=sha256,
        path=path,
        source=path,
        weights_bytes=_weights_bytes(files),
        sizes=tuple((side * factor, side * factor) for factor in config.upscales),
        free_sizes=None,
        channels=config.channels,
        training_length=config.noise_schedule.length,
        context_length=_context_length(path, config.clip.model),
    )


def _imported(path: Path, itemsize: int) -> Description:
    # Here, for other models do not need it.
    from models.stable_diffusion.loading import read_pipeline_config
    from models.stable_diffusion.single_file import PREFIXES

    config = read_pipeline_config(read_entry(path))
    if not config.source.is_dir():
        raise BundleError(
            f"the files of {config.name!r} are gone: there is no folder {str(config.source)!r}; "
            "import it again from where it lies now"
        )
    betas = config.noise.betas
    # A single file may hold more, as the averages of training.
    under = tuple(PREFIXES[config.generation].values()) if config.generation else ("",)
    weights = [config.source / name for name in config.files if name.endswith(".safetensors")]
    return Description(
        config=config,
        sha256=_sha256(path / CONFIG_FILE),
        path=path,
        source=config.source,
        weights_bytes=_weights_bytes(weights, itemsize, under),
        sizes=config.sizes,
        free_sizes=config.free_sizes,
        channels=3,
        training_length=config.noise.length if betas is None else len(betas),
        context_length=_USUAL_CONTEXT,
    )


def _weights_bytes(
    files: Iterable[Path], itemsize: int = _FLOAT32, under: tuple[str, ...] = ("",)
) -> int:
    """Memory of the tensors whose names begin with one of `under`, from the files' headers."""
    total = 0
    for file in files:
        try:
            with safe_open(file, "pt") as tensors:
                names = [key for key in tensors.keys() if key.startswith(under)]  # noqa: SIM118 - not a mapping
                shapes = [tensors.get_slice(key).get_shape() for key in names]
        except (SafetensorError, OSError) as fault:
            missing = not file.is_file()
            what = "is missing" if missing else f"is damaged or truncated: {fault}"
            raise BundleError(f"{file.name} of {str(file.parent)!r} {what}") from None
        total += itemsize * sum(prod(shape) for shape in shapes)
    return total


def _context_length(path: Path, clip: str) -> int:
    """Of a CLIP that lies in the bundle; the usual one of any other, until it is loaded."""
    if clip.startswith(LOCAL_PREFIX):
        file = path / clip.removeprefix(LOCAL_PREFIX) / "open_clip_config.json"
        with suppress(OSError, ValueError, KeyError, TypeError):
            return int(
                json.loads(file.read_text("utf-8"))["model_cfg"]["text_cfg"]["context_length"]
            )
    return _USUAL_CONTEXT


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
