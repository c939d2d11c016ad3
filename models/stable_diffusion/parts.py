"""What a single file lacks of the folder layout, written beside its `bundle.json`.

That is its configurations, and CLIP's vocabulary, which open_clip brings.
"""

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from models.stable_diffusion.folder import INDEX
from models.torchvision_ops import declare_missing_operators

__all__ = ["PARTS", "clip_vocabulary", "write_parts"]

PARTS = "parts"
_MERGES_FILE = "bpe_simple_vocab_16e6.txt.gz"
_MARKS = ("<|startoftext|>", "<|endoftext|>")
_MERGES = 49152 - 256 - len(_MARKS)  # of those in the file, which has more
# What each tokenizer fills up with: OpenAI's with the end mark, OpenCLIP's with token 0.
_PADDING: Final[Mapping[str, Mapping[str, str]]] = {
    "sd1": {"tokenizer": _MARKS[1]},
    "sd2": {"tokenizer": "!"},
    "sdxl": {"tokenizer": _MARKS[1], "tokenizer_2": "!"},
}
_CLASSES: Final[Mapping[str, Sequence[str]]] = {
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
}


def write_parts(path: Path, generation: str, configs: Mapping[str, Mapping[str, Any]]) -> None:
    """Write `path` as the folder layout without its weights; `configs` by component."""
    for name, config in configs.items():
        file = "scheduler_config.json" if name == "scheduler" else "config.json"
        _write_json(path / name / file, config)
    for name, padding in _PADDING[generation].items():
        _write_tokenizer(path / name, padding)
    xl = generation == "sdxl"
    index: dict[str, Any] = {"_class_name": f"StableDiffusion{'XL' if xl else ''}Pipeline"}
    index |= {name: ["transformers", "CLIPTokenizer"] for name in _PADDING[generation]}
    index |= {name: _CLASSES[name] for name in configs if name in _CLASSES}
    index["scheduler"] = ["diffusers", configs["scheduler"]["_class_name"]]
    _write_json(path / INDEX, index | ({"force_zeros_for_empty_prompt": True} if xl else {}))


def clip_vocabulary() -> tuple[dict[str, int], list[str]]:
    """The ids of CLIP's 49408 tokens, and its merges in order."""
    declare_missing_operators()
    import open_clip
    from open_clip.tokenizer import bytes_to_unicode

    file = Path(open_clip.__file__).parent / _MERGES_FILE
    merges = gzip.decompress(file.read_bytes()).decode().split("\n")[1 : _MERGES + 1]
    letters = list(bytes_to_unicode().values())
    words = [*letters, *(f"{one}</w>" for one in letters), *("".join(m.split()) for m in merges)]
    return {word: number for number, word in enumerate([*words, *_MARKS])}, merges


def _write_tokenizer(folder: Path, padding: str) -> None:
    vocabulary, merges = clip_vocabulary()
    start, end = _MARKS
    marks = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": padding}
    more = {"model_max_length": 77, "tokenizer_class": "CLIPTokenizer", "do_lower_case": True}
    _write_json(folder / "tokenizer_config.json", marks | more)
    _write_json(folder / "vocab.json", vocabulary)
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), "utf-8")


def _write_json(file: Path, entry: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(entry, indent=2, ensure_ascii=False) + "\n", "utf-8")
