"""A local folder in the layout that diffusers writes: which files make the model. No torch here."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from models.errors import BundleError
from models.stable_diffusion.mistaken import mistaken_for

__all__ = ["INDEX", "Component", "Folder", "read_folder", "read_parts"]

INDEX = "model_index.json"
_PICKLES = (".bin", ".ckpt", ".pt", ".pth")
_STEMS: Final[Mapping[str, str]] = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
}
_LORA = "pytorch_lora_weights.safetensors"  # as diffusers saves one
_PLAIN: Final[Mapping[str, str]] = {"scheduler": "scheduler_config.json"}
_ALWAYS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
_SECOND = ("text_encoder_2", "tokenizer_2")
# Of each component at least one of these, whole.
_VOCABULARIES = (("vocab.json", "merges.txt"), ("tokenizer.json",))
_TOKENIZER_FILES = (
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_PIPELINES = (
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "LatentConsistencyModelPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    # Of ordinary models; those whose U-Net takes the mask, too, are refused for its channels.
    "StableDiffusionInpaintPipeline",
    "StableDiffusionXLInpaintPipeline",
)


@dataclass(frozen=True)
class Component:
    """One part of the model: its configuration, and the files that hold it."""

    config: Mapping[str, Any]
    weights: tuple[Path, ...] = ()
    others: tuple[Path, ...] = ()  # configuration and vocabulary
    generation: str | None = None  # of a single file, whose weights have their original names

    @property
    def files(self) -> tuple[Path, ...]:
        return (*self.weights, *self.others)


@dataclass(frozen=True)
class Folder:
    """All that is read of a model; what else lies there (safety checkers, examples) is not."""

    path: Path
    index: Mapping[str, Any]
    components: Mapping[str, Component]
    variant: str | None = None  # that was preferred

    @property
    def is_xl(self) -> bool:
        """Whether it has SDXL's second text encoder."""
        return "text_encoder_2" in self.components

    def config(self, name: str) -> Mapping[str, Any]:
        """The configuration of a component."""
        return self.components[name].config


def read_folder(path: Path, variant: str | None = None) -> Folder:
    """Find the files of the model in `path`; `variant` prefers files as `….fp16.safetensors`.

    Raises:
        BundleError: it is no such folder, a component is missing, or its weights are a pickle.
    """
    path = _snapshot(path.resolve())
    _refuse_file(path)
    index = _read_json(path / INDEX) if (path / INDEX).is_file() else _without_index(path)
    kind = index.get("_class_name", "StableDiffusionPipeline")
    if kind not in _PIPELINES:
        known = ", ".join(_PIPELINES)
        raise BundleError(f"{INDEX} says {kind!r}; these can be imported: {known}")
    second = any(_is_listed(index, name) for name in _SECOND)
    second = second or kind.startswith("StableDiffusionXL")
    names = _ALWAYS + (_SECOND if second else ())
    missing = [name for name in names if not (path / name).is_dir()]
    if second and "text_encoder" in missing and not _is_listed(index, "text_encoder"):
        raise BundleError(
            f"{str(path)!r} is the refiner of SDXL, which only works on another's latents"
        )
    if missing:
        raise BundleError(
            f"{str(path)!r} has no folder {', '.join(missing)}; a {kind} needs {', '.join(names)}"
        )
    components = {name: _component(path / name, variant) for name in names}
    return Folder(path, index, components, variant)


def read_parts(path: Path, file: Path, generation: str) -> Folder:
    """The same of a single file in the original layout; `path` has what `write_parts` wrote.

    Raises:
        BundleError: one of them is missing.
    """
    index = _read_json(path / INDEX)
    second = str(index.get("_class_name")).startswith("StableDiffusionXL")
    components = {}
    for name in _ALWAYS + (_SECOND if second else ()):
        if name in _STEMS:
            config = path / name / "config.json"
            components[name] = Component(_read_json(config), (file,), (config,), generation)
        else:
            components[name] = _component(path / name, None)
    return Folder(file.parent, index, components)


def _is_listed(index: Mapping[str, Any], name: str) -> bool:
    """Whether the index has a component, as [library, class] and not null or [null, null]."""
    entry = index.get(name)
    return isinstance(entry, list) and any(entry)


def _snapshot(path: Path) -> Path:
    """What a folder of the hub's cache, models--ORG--NAME, has of its branch main."""
    if not (path / "snapshots").is_dir():
        return path
    main = path / "refs" / "main"
    current = main.read_text("utf-8").strip() if main.is_file() else ""
    every = sorted(one for one in (path / "snapshots").iterdir() if one.is_dir())
    found = [one for one in every if one.name == current] or every
    if len(found) != 1:
        names = ", ".join(one.name for one in found) or "none"
        raise BundleError(f"{str(path / 'snapshots')!r} should have one folder ({names}): name it")
    return found[0]


def _refuse_file(path: Path) -> None:
    if path.suffix.lower() in _PICKLES and path.is_file():
        raise BundleError(
            f"{path.name} is a pickle, which can run any program when it is read, so it is not "
            f"read here. Convert it where you trust it: {_conversion_of_file(path)}"
        )
    if path.is_file():
        raise BundleError(f"{path.name} is neither a folder nor a .safetensors file")
    if not path.is_dir():
        raise BundleError(f"there is no folder or file {str(path)!r}")


def _conversion(path: Path) -> str:
    return (
        f"python -c 'from diffusers import DiffusionPipeline as P; "
        f'P.from_pretrained("{path}").save_pretrained("{path}-safetensors")\''
    )


def _conversion_of_file(path: Path) -> str:
    """Needs torch and safetensors alone, and runs nothing of the pickle."""
    return (
        "python -c 'import torch, safetensors.torch as s; "
        f'd = torch.load("{path}", "cpu", weights_only=True); d = d.get("state_dict", d); '
        "s.save_file({k: v.clone().contiguous() for k, v in d.items() if torch.is_tensor(v)}, "
        f'"{path.with_suffix(".safetensors")}")\''
    )


def _without_index(path: Path) -> Mapping[str, Any]:
    """Folders whose index got lost are known by their components."""
    if not (path / "unet").is_dir():
        _refuse_part(path)
        found = sorted(one.name for one in path.glob("*.safetensors"))
        hint = f"; it holds single files ({', '.join(found[:3])}): name one" if found else ""
        raise BundleError(f"{str(path)!r} has neither {INDEX} nor a folder unet{hint}")
    second = (path / "text_encoder_2").is_dir()
    return {"_class_name": "StableDiffusionXLPipeline" if second else "StableDiffusionPipeline"}


def _refuse_part(path: Path) -> None:
    """Folders that hold one network of a pipeline, or what is put on top of one."""
    if (path / _LORA).is_file():
        raise BundleError(
            f"{str(path)!r} holds a LoRA ({_LORA}): put it into the folder AVOCAT_LORA_DIR and "
            "name it in a job"
        )
    if (path / "config.json").is_file():
        kind = str(_read_json(path / "config.json").get("_class_name", "network"))
        control = " (ControlNets are not served)" if kind.startswith("ControlNet") else ""
        raise BundleError(
            f"{str(path)!r} is a {kind}, one part of a model{control}; name the folder of the "
            "whole pipeline"
        )


def _component(path: Path, variant: str | None) -> Component:
    if path.name in _STEMS:
        config = path / "config.json"
        weights, index = _weights(path, _STEMS[path.name], variant)
        return Component(_read_json(config), weights, (config, *index))
    if path.name in _PLAIN:
        config = path / _PLAIN[path.name]
        return Component(_read_json(config), (), (config,))
    return _tokenizer(path)


def _tokenizer(path: Path) -> Component:
    if not any(all((path / name).is_file() for name in names) for names in _VOCABULARIES):
        raise BundleError(f"{path.name} has neither vocab.json and merges.txt nor tokenizer.json")
    found = tuple(path / name for name in _TOKENIZER_FILES if (path / name).is_file())
    config = path / "tokenizer_config.json"
    return Component(_read_json(config) if config.is_file() else {}, (), found)


def _weights(path: Path, stem: str, variant: str | None) -> tuple[tuple[Path, ...], list[Path]]:
    """The safetensors files of a component and, where it is in parts, the index that names them."""
    for infix in (variant, None, "fp16") if variant else (None, "fp16"):
        dotted = f".{infix}" if infix else ""
        whole = path / f"{stem}{dotted}.safetensors"
        if whole.is_file():
            return (whole,), []
        # The infix stands here or there, by the release that wrote the file.
        for end in (f"{dotted}.safetensors.index.json", f".safetensors.index{dotted}.json"):
            index = path / f"{stem}{end}"
            if index.is_file():
                return _parts(path, index), [index]
    pickles = sorted(one.name for one in path.iterdir() if one.suffix in _PICKLES)
    if pickles:
        raise BundleError(
            f"{path.name} has its weights as {pickles[0]}, a pickle, which can run any program "
            f"when it is read, so it is not read here. Convert it where you trust it: "
            f"{_conversion(path.parent)}"
        )
    raise BundleError(
        f"{path.name} has no weights: {stem}.safetensors is missing from {str(path)!r}"
    )


def _parts(path: Path, index: Path) -> tuple[Path, ...]:
    names = _read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise BundleError(f"{path.name}/{index.name} names no files in its weight_map")
    parts = tuple(path / str(name) for name in sorted(set(names.values())))
    for part in parts:
        if part.parent != path or not part.is_file():
            raise BundleError(f"{path.name}/{index.name} names {part.name!r}, which is missing")
    return parts


def _read_json(file: Path) -> Mapping[str, Any]:
    where = f"{file.parent.name}/{file.name}"
    try:
        entry = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise BundleError(f"{where} is missing from {str(file.parent.parent)!r}") from None
    except (OSError, ValueError) as fault:
        what = mistaken_for(file)
        wrong = f"cannot be read: {fault}" if what is None else f"is {what}"
        raise BundleError(f"{where} {wrong}") from None
    if not isinstance(entry, dict):
        raise BundleError(f"{where} must hold a JSON object, not {type(entry).__name__}")
    return entry
