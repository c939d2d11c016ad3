"""Imports a folder as `bundle.json`, and loads what was imported."""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from models.errors import BundleError
from models.layers import channels_last
from models.memory import free_bytes
from models.replacing import replacing
from models.stable_diffusion.config import KIND, PipelineConfig
from models.stable_diffusion.folder import INDEX, Folder, read_folder, read_parts
from models.stable_diffusion.modules import (
    build,
    check_finite,
    check_shapes,
    load_weights,
    read_metadata,
    read_shapes,
    weight_bytes,
)
from models.stable_diffusion.parts import PARTS, write_parts
from models.stable_diffusion.pipeline import Autoencoder, LatentDenoiser, Pipeline
from models.stable_diffusion.settle import Wishes, settle, unheeded
from models.stable_diffusion.single_file import configurations, generation_of
from models.stable_diffusion.text import TextEncoders, Tower
from models.torchvision_ops import declare_missing_operators

__all__ = ["import_folder", "load_pipeline", "read_pipeline_config"]

CONFIG_FILE = "bundle.json"
_WEIGHED = ("unet", "vae", "text_encoder", "text_encoder_2")
_ROOM = 1.1  # of the weights: what else a worker needs


def import_folder(
    source: Path,
    into: Path,
    name: str,
    wishes: Wishes | None = None,
    *,
    variant: str | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> PipelineConfig:
    """Write `into/bundle.json`, which points to the files of `source`; no weight is copied.

    `source` is a folder in the layout of diffusers, or a single safetensors file in the original
    one; then `into/parts` holds the configurations and the vocabulary that it lacks.

    Raises:
        BundleError: the folder is not whole, is damaged, or is not served; names what.
    """
    wishes = wishes or Wishes()
    with TemporaryDirectory() as scratch:
        _refuse_bundle(into, name)
        single = source.suffix.lower() == ".safetensors" and source.is_file()
        parts = Path(scratch) / PARTS
        folder = _single(source, parts, wishes) if single else read_folder(source, variant)
        for part in _weighed(folder):
            progress(f"checking {part}")
            module = build(folder, part)
            check_shapes(module, part, folder.components[part])
            check_finite(module, part, folder.components[part])
        _check_tokenizers(folder)
        try:
            config = settle(folder, name, wishes, *_hashes(folder, parts, progress))
        except ValidationError as fault:
            first = fault.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise BundleError(f"{where}: {first['msg']}") from None
        _write(into, config, parts)
    for asked in unheeded(folder):
        progress(f"not served, and left out: {asked} of the scheduler; pictures may differ by it")
    return config


def _single(file: Path, parts: Path, wishes: Wishes) -> Folder:
    """A single file, with its configurations and vocabulary written to `parts`."""
    file = file.absolute()  # a link has the suffix that what it leads to may lack, as in HF's cache
    shapes = read_shapes(file, file.name)
    generation = generation_of(shapes, file.name)
    told = read_metadata(file)
    configs = configurations(shapes, generation, file.name, wishes.prediction, told)
    write_parts(parts, generation, configs)
    return read_parts(parts, file, generation)


def _check_tokenizers(folder: Folder) -> None:
    """A vocabulary that is cut short or another's, which only the first job would tell of."""
    for name, component in folder.components.items():
        if name.startswith("tokenizer"):
            _tokenizer(component.files[0].parent)


def _hashes(
    folder: Folder, parts: Path, progress: Callable[[str], None]
) -> tuple[dict[str, str], dict[str, str]]:
    """Of the files that stay where they are, and of those that are written beside bundle.json."""
    theirs: dict[str, str] = {}
    ours: dict[str, str] = {}
    every = [file for component in folder.components.values() for file in component.files]
    for file in dict.fromkeys(every):
        mine = file.is_relative_to(parts)
        relative = file.relative_to(parts if mine else folder.path).as_posix()
        progress(f"hashing {relative}")
        (ours if mine else theirs)[relative] = _sha256(file)
    if ours:
        ours[INDEX] = _sha256(parts / INDEX)
    return theirs, ours


def _refuse_bundle(into: Path, name: str) -> None:
    """What was imported may be again; a bundle's own weights would be lost."""
    try:
        entry = json.loads((into / CONFIG_FILE).read_text("utf-8"))
    except (OSError, ValueError):
        return
    if isinstance(entry, dict) and entry.get("kind") != KIND:
        raise BundleError(
            f"{str(into)!r} is a bundle with weights of its own: give another name than {name!r}, "
            "or move that folder"
        )


def _write(into: Path, config: PipelineConfig, parts: Path) -> None:
    into.mkdir(parents=True, exist_ok=True)
    new = into / f"{PARTS}.partial"
    try:
        if config.parts:
            shutil.copytree(parts, new, dirs_exist_ok=True)
        if (into / PARTS).is_dir():  # of an earlier import, which is whole until here
            shutil.rmtree(into / PARTS)
        if config.parts:
            new.rename(into / PARTS)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    with replacing(into / CONFIG_FILE) as file:
        file.write((config.model_dump_json(indent=2) + "\n").encode())


def read_pipeline_config(entry: Mapping[str, Any]) -> PipelineConfig:
    """Check the JSON of an imported `bundle.json`.

    Raises:
        BundleError: it is not of this form.
    """
    try:
        return PipelineConfig.model_validate_json(json.dumps(entry))
    except ValidationError as fault:
        first = fault.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise BundleError(f"{CONFIG_FILE}: {where}: {first['msg']}") from None


def load_pipeline(
    path: Path,
    config: PipelineConfig,
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
) -> Pipeline:
    """Load an imported model onto `device`, every file checked against its hash.

    Its weights are made `dtype`, but for an autoencoder in float16 whose configuration says that
    it overflows there (SDXL's `force_upcast`): that one is float32.

    Raises:
        BundleError: a file is missing, changed or damaged, or memory does not suffice.
    """
    device = torch.device(device)
    folder = _recorded(path, config)
    dtypes = {part: _dtype(folder, part, dtype) for part in _weighed(folder)}
    _check_memory(folder, device, dtypes)
    schedule = config.noise.schedule()
    modules: dict[str, nn.Module] = {}
    for part, own in dtypes.items():
        modules[part] = build(folder, part)
        load_weights(modules[part], part, folder.components[part], device, own)
        if device.type == "cuda" and not part.startswith("text_encoder"):
            channels_last(modules[part])
    unet, shapes = modules["unet"], folder.config("unet")
    guidance: int | None = shapes.get("time_cond_proj_dim")
    encoders = TextEncoders(
        _towers(folder, modules, path / PARTS if config.parts else folder.path),
        device,
        width=int(shapes.get("cross_attention_dim", 1280)),
        clip_skip=config.clip_skip,
        empty_is_zero=config.empty_is_zero,
        guidance_width=guidance,
    )
    denoiser = LatentDenoiser(unet, sized=folder.is_xl, guided=guidance is not None)
    sha256 = _sha256(path / CONFIG_FILE)
    autoencoder = Autoencoder(modules["vae"], config.sizes[0])
    return Pipeline(config, schedule, denoiser.eval(), encoders, autoencoder, sha256, path)


def _weighed(folder: Folder) -> list[str]:
    return [name for name in _WEIGHED if name in folder.components]


def _dtype(folder: Folder, part: str, wanted: torch.dtype) -> torch.dtype:
    # diffusers writes it into every configuration that it saves, and heeds it for SDXL alone.
    upcast = folder.is_xl and part == "vae" and folder.config("vae").get("force_upcast", True)
    return torch.float32 if upcast and wanted == torch.float16 else wanted


def _recorded(path: Path, config: PipelineConfig) -> Folder:
    """The folder as it was imported: each file of then, and none that came since."""
    if not config.source.is_dir():
        raise BundleError(
            f"the files of {config.name!r} are gone: there is no folder {str(config.source)!r}; "
            "import it again from where it lies now"
        )
    _check_hashes(config.source, config.files)
    if config.generation is not None:
        _check_hashes(path / PARTS, config.parts)
        [file] = config.files
        return read_parts(path / PARTS, config.source / file, config.generation)
    folder = read_folder(config.source, config.variant)
    kept = {}
    for name, component in folder.components.items():
        recorded = sorted(one for one in config.files if one.startswith(f"{name}/"))
        weights = tuple(config.source / one for one in recorded if one.endswith(".safetensors"))
        kept[name] = replace(component, weights=weights)
    return replace(folder, components=kept)


def _check_hashes(folder: Path, files: Mapping[str, str]) -> None:
    for name, expected in files.items():
        file = folder / name
        if not file.is_file():
            raise BundleError(f"{name} is missing from {str(folder)!r}")
        found = _sha256(file)
        if found != expected:
            raise BundleError(
                f"{name} of {str(folder)!r} is not what was imported: its sha256 is "
                f"{found[:12]}…, {CONFIG_FILE} says {expected[:12]}…; import it again"
            )


def _check_memory(folder: Folder, device: torch.device, dtypes: Mapping[str, torch.dtype]) -> None:
    """Before anything is loaded: the weights on the device, and the largest one on its way there.

    Raises:
        BundleError: with all sizes.
    """
    sizes = {part: weight_bytes(part, folder.components[part], own) for part, own in dtypes.items()}
    total = sum(sum(one) for one in sizes.values())
    formats = " and ".join(sorted({str(one).removeprefix("torch.") for one in dtypes.values()}))
    named = ", ".join(f"{part} {_megabytes(sum(one))}" for part, one in sizes.items())
    needs = [(device, int(total * _ROOM), f"{_megabytes(total)} of weights in {formats} ({named})")]
    if device.type != "cpu":
        largest = max(max(one) for one in sizes.values())
        needs += [(torch.device("cpu"), 2 * largest, f"the largest weight, {_megabytes(largest)}")]
    for place, needed, what in needs:
        free = free_bytes(place)
        if needed > free:
            raise BundleError(
                f"not enough memory on {place}: {what} need {_megabytes(needed)}, and "
                f"{_megabytes(free)} are free"
            )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"


def _towers(folder: Folder, modules: Mapping[str, Any], at: Path) -> tuple[Tower, ...]:
    """`at`: the folder that the tokenizers lie in."""
    tokenizer = _tokenizer(at / "tokenizer")
    first = Tower(tokenizer, modules["text_encoder"], folder.is_xl, projected=False)
    if not folder.is_xl:
        return (first,)
    tokenizer = _tokenizer(at / "tokenizer_2")
    return (first, Tower(tokenizer, modules["text_encoder_2"], True, projected=True))


def _tokenizer(path: Path) -> Any:
    declare_missing_operators()
    from transformers import CLIPTokenizer

    try:
        return CLIPTokenizer.from_pretrained(path, local_files_only=True)
    except Exception as fault:  # many kinds; all mean that it did not load
        raise BundleError(f"{path.name} did not load: {fault}") from None


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
