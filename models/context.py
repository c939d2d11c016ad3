"""Prompt → token ids → CLIP's text tower → context vector, through open_clip."""

import json
import logging
import math
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import BaseModel, ConfigDict
from safetensors import safe_open
from torch import Tensor, nn

from models.clip_library import open_clip
from models.errors import ContextError
from models.layers import shapes_only, unfilled
from models.model import Adapters, Conditioning, Context, Size, Wanted, text_rows

LOCAL_PREFIX = "local-dir:"
CLIP_CONFIG_FILE = "open_clip_config.json"
_WEIGHTS = "open_clip_model.safetensors"
_MOST_LAYERS = 256
_MORE_THAN_FILE = 1.1  # weights of a model that its file may lack, such as masks
# Of a configuration: other libraries' towers and tokenizers, which may bring code or fetch files.
_OUTSIDE = {"hf_model_name", "hf_tokenizer_name", "timm_model_name", "tokenizer_kwargs"}


class ClipReference(BaseModel):
    """Which CLIP makes the contexts.

    `model` is any open_clip name with a `pretrained` tag or weight file, or `local-dir:PATH`, a
    folder with `open_clip_config.json` and `open_clip_model.safetensors`, relative to the bundle.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    pretrained: str | None = None


@dataclass(frozen=True)
class Clip:
    """An open_clip model with its tokenizer and the picture normalisation of its image tower."""

    model: nn.Module
    tokenizer: Any
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int


def load_clip(reference: ClipReference, folder: Path | None = None) -> Clip:
    """Load the CLIP that `reference` names, in float32, frozen; no pickle is read.

    Raises:
        ContextError: open_clip does not know it, its files are missing or damaged, or it could
            run code.
    """
    name = reference.model
    if name.startswith(LOCAL_PREFIX) and folder is not None:
        name = LOCAL_PREFIX + str(_inside(folder, name.removeprefix(LOCAL_PREFIX)))
    elif folder is not None and _is_pickle(reference.pretrained):
        raise ContextError(f"CLIP weights {reference.pretrained!r} are a file, not safetensors")
    try:
        library = open_clip(whole=_is_more_than_clip(name))
        if name.startswith(LOCAL_PREFIX):
            _check_size(library, name)
        with unfilled():
            model = library.create_model(
                name, pretrained=reference.pretrained, require_pretrained=True, weights_only=True
            )
        tokenizer = library.get_tokenizer(name)
        shape = library.get_model_preprocess_cfg(model)
        side = shape["size"] if isinstance(shape["size"], int) else int(shape["size"][0])
        mean, std = (tuple(map(float, shape[name])) for name in ("mean", "std"))
        if not len(mean) == len(std) == 3:
            raise ValueError(f"mean {mean} and std {std} should have three numbers each")
    except Exception as fault:  # open_clip raises many kinds; all mean that it did not load
        raise ContextError(
            f"CLIP {reference.model!r} (pretrained {reference.pretrained!r}) did not load: {fault}"
        ) from fault
    return Clip(model.eval().requires_grad_(False), tokenizer, mean, std, side)


def _inside(folder: Path, relative: str) -> Path:
    """The folder of a bundle's CLIP, if open_clip will read nothing but tensors and text there.

    It would also take pickled weights where there are no others, and tokenizers with code.

    Raises:
        ContextError: it lies outside the bundle, has no safetensors, or brings a tokenizer.
    """
    try:
        path = (folder / relative).resolve()
        description = json.loads((path / CLIP_CONFIG_FILE).read_text("utf-8"))
        there = (path / _WEIGHTS).is_file()
    except (OSError, ValueError, RecursionError) as fault:
        raise ContextError(f"CLIP {relative!r} did not load: {fault}") from None
    if not path.is_relative_to(folder.resolve()):
        raise ContextError(f"CLIP {relative!r} lies outside the bundle")
    if not there:
        raise ContextError(f"CLIP {relative!r} has no {_WEIGHTS}")
    if not isinstance(description, dict):
        raise ContextError(f"CLIP {relative!r}: {CLIP_CONFIG_FILE} should hold a JSON object")
    if _most_layers(description) > _MOST_LAYERS:
        raise ContextError(f"CLIP {relative!r} has more than {_MOST_LAYERS} layers")
    if found := _OUTSIDE & set(_names(description)):
        raise ContextError(f"CLIP {relative!r} names {min(found)!r}: what is not open_clip's own")
    return path


def _most_layers(description: dict[str, Any]) -> int:
    """Of a tower; each takes time to build, however small it is."""
    towers = description.get("model_cfg")
    found = [
        tower["layers"]
        for tower in (towers.values() if isinstance(towers, dict) else ())
        if isinstance(tower, dict) and isinstance(tower.get("layers"), int | list)
    ]
    counts = [
        sum(n for n in one if isinstance(n, int)) if isinstance(one, list) else one for one in found
    ]
    return max(counts, default=0)


def _is_pickle(pretrained: str | None) -> bool:
    """Whether that is a file, not one of open_clip's own tags, and of another kind than ours."""
    named = pretrained is not None and (os.sep in pretrained or Path(pretrained).suffix != "")
    return named and not str(pretrained).endswith(".safetensors")


def _names(entry: dict[str, Any] | list[Any]) -> Iterator[str]:
    """All names of JSON objects in there."""
    if isinstance(entry, dict):
        yield from entry
    for inner in entry.values() if isinstance(entry, dict) else entry:
        if isinstance(inner, dict | list):
            yield from _names(inner)


def _is_silent(_: logging.LogRecord) -> bool:
    return False


def _check_size(library: Any, name: str) -> None:
    """Raise ValueError if the configuration asks for more memory than the file's weights have."""
    folder = Path(name.removeprefix(LOCAL_PREFIX))
    root = logging.getLogger()
    root.addFilter(_is_silent)  # open_clip warns that there are no weights: that is the point
    try:
        with shapes_only(), torch.device("meta"):
            described = library.create_model(name, device="meta", load_weights=False)
    finally:
        root.removeFilter(_is_silent)
    needs = sum(tensor.numel() for tensor in described.state_dict().values())
    with safe_open(folder / _WEIGHTS, "pt") as file:
        has = sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
    if needs > _MORE_THAN_FILE * has:
        raise ValueError(f"{CLIP_CONFIG_FILE} describes {needs} weights, and {_WEIGHTS} has {has}")


def _is_more_than_clip(name: str) -> bool:
    """Whether a tower is another library's, or weights may have to be fetched."""
    if not name.startswith(LOCAL_PREFIX):
        return True
    config = json.loads(Path(name.removeprefix(LOCAL_PREFIX), CLIP_CONFIG_FILE).read_text("utf-8"))
    towers = [tower for tower in config["model_cfg"].values() if isinstance(tower, dict)]
    return any(key.startswith(("hf_", "timm_")) for tower in towers for key in tower)


def encode_text(model: Any, tokens: Tensor) -> Tensor:
    """The text tower on `tokens` int64 `[B, L]`, cut to the longest prompt → `[B, D]`, length 1.

    The tower is causal and pools at the end token, so the padding behind it changes nothing; used
    in training, where short captions make it several times cheaper than the full context length.
    """
    length = int((tokens != 0).sum(1).max())
    tokens = tokens[:, :length]
    x = model.token_embedding(tokens) + model.positional_embedding[:length]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
    pooled = x[torch.arange(len(x), device=x.device), tokens.argmax(-1)]
    return F.normalize(pooled @ model.text_projection, dim=-1)


class ContextEncoder:
    """Embeds prompts in batches of one size, so that a context never depends on its neighbours."""

    def __init__(
        self,
        clip: Clip,
        device: torch.device | str = "cpu",
        cache_size: int = 4096,
        rows: int | None = None,
    ) -> None:
        """`rows`: that size; None: what suits the device."""
        self.clip = clip
        self.device = torch.device(device)
        self.text_rows = rows or text_rows(self.device)
        self.clip.model.to(self.device)
        self._cache: OrderedDict[str, Tensor] = OrderedDict()
        self._cache_size = cache_size
        self.context_length = int(self.clip.model.context_length)  # type: ignore[arg-type]
        try:
            self.width = int(self.encode([""]).shape[1])  # most jobs ask for it, too
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as fault:
            raise ContextError(f"the CLIP encodes no text: {fault}") from fault

    @property
    def empty(self) -> Tensor:
        """The context of no prompt, float32 `[D]`: the unconditional side of guidance."""
        return self.encode([""])[0]

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Prompts → float32 `[B, D]`, each of length 1. Longer prompts than CLIP reads are cut."""
        found = {prompt: self._cache[prompt] for prompt in prompts if prompt in self._cache}
        found |= self._learned([prompt for prompt in dict.fromkeys(prompts) if prompt not in found])
        for prompt in found:
            self._cache.move_to_end(prompt)
        while len(self._cache) > self._cache_size:
            self._cache.popitem(last=False)
        return torch.stack([found[prompt] for prompt in prompts])

    def prepare(self, wanted: Sequence[Wanted]) -> None:
        """Encode what is not known yet, so that `conditioning` finds it."""
        if wanted:
            self.encode([text or "" for one in wanted for text in one[:2]])

    def conditioning(
        self,
        prompt: str,
        negative: str | None,
        guidance_scale: float,
        size: Size,
        adapters: Adapters | None = None,
    ) -> Conditioning:
        """One vector each; the size is the same for all."""
        context, unconditional = self.encode([prompt, negative or ""])
        return Conditioning((context,), (unconditional,), guidance_scale)

    def check(self, context: Context) -> None:
        """Raise ValueError if that is not one vector `[D]`."""
        if [part.shape for part in context] != [(self.width,)]:
            found = ", ".join(str(tuple(part.shape)) for part in context)
            raise ValueError(f"context is {found}; this bundle takes ({self.width},)")

    def token_count(self, prompt: str) -> int:
        """Tokens of the prompt with its start and end marks."""
        return len(self.clip.tokenizer.encode(prompt)) + 2

    def is_truncated(self, prompt: str) -> bool:
        """Whether the prompt is longer than CLIP's context, so that its end is not seen."""
        return self.token_count(prompt) > self.context_length

    def see(self, picture: Image.Image) -> Context:
        """The picture itself as a context: its place in CLIP's space, where prompts are, too."""
        return (self._seen(picture),)

    def score(self, picture: Image.Image, prompt: str) -> float:
        """Cosine of picture and prompt in CLIP's space, in [-1, 1]."""
        return float(self._seen(picture) @ self.encode([prompt])[0])

    @torch.inference_mode()
    def _seen(self, picture: Image.Image) -> Tensor:
        """A picture's vector float32 `[D]`, of length 1; transparency is shown on white."""
        flat = Image.new("RGBA", picture.size, "white")
        flat.alpha_composite(picture.convert("RGBA"))
        size = (self.clip.image_size, self.clip.image_size)
        small = flat.convert("RGB").resize(size, Image.Resampling.BICUBIC)
        pixels = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8)
        x = pixels.reshape(*size, 3).permute(2, 0, 1).to(self.device).float() / 255
        return F.normalize(self.encode_pictures(x[None]), dim=-1)[0].float()

    def encode_pictures(self, rgb: Tensor) -> Tensor:
        """Pictures `[B, 3, S, S]` in [0, 1], S the image tower's size → `[B, D]`, any length."""
        mean = rgb.new_tensor(self.clip.mean).reshape(-1, 1, 1)
        std = rgb.new_tensor(self.clip.std).reshape(-1, 1, 1)
        features: Tensor = self.clip.model.encode_image((rgb - mean) / std)  # type: ignore[operator]
        return features

    @torch.inference_mode()
    def _learned(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Those that are not in the cache, which they are from then on."""
        learned: dict[str, Tensor] = {}
        for at in range(0, len(prompts), self.text_rows):
            part = list(prompts[at : at + self.text_rows])
            padded = part + [""] * (self.text_rows - len(part))
            tokens = self.clip.tokenizer(padded, context_length=self.context_length)
            tokens = tokens.to(self.device)
            features: Tensor = self.clip.model.encode_text(tokens, normalize=True)  # type: ignore[operator]
            learned |= zip(part, features.float().unbind(), strict=False)
        self._cache |= learned
        return learned
