"""Prompts to hidden states, by one CLIP text tower or by SDXL's two, in chunks of any number."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from models.model import Adapters, Conditioning, Context, Size, Wanted, text_rows
from models.stable_diffusion.lora import applied

__all__ = ["TextEncoders", "Tower"]

_Encoded = tuple[Tensor, Tensor | None]  # states, and the pooled vector
_CACHED = 256  # prompts; the states of one are 0.2 to 0.6 MB a chunk


@dataclass(frozen=True, eq=False)
class Chunk:
    """Token ids, how many of the tower's last layers are left out, and LoRAs."""

    ids: Sequence[int]
    skip: int
    adapters: Adapters | None


@dataclass(frozen=True, eq=False)
class _Text:
    """A prompt as it is read: in `count` chunks."""

    prompt: str
    count: int
    skip: int
    adapters: Adapters | None

    @property
    def key(self) -> tuple[object, ...]:
        loras = self.adapters.key if self.adapters is not None else ()
        return (self.prompt, self.count, self.skip, loras)


@dataclass(frozen=True, eq=False)
class Tower:
    """A tokenizer and its text encoder.

    `penultimate`: the states before the last layer are taken as they are, as SDXL does; else those
    of the last layer, normalised. `projected`: it also gives a pooled vector.
    """

    tokenizer: Any
    model: nn.Module
    penultimate: bool
    projected: bool

    @property
    def length(self) -> int:
        """Tokens of a chunk with its start and end marks."""
        most = int(self.model.config.max_position_embeddings)  # type: ignore[union-attr, arg-type]
        return min(most, int(self.tokenizer.model_max_length))

    def chunks(self, prompt: str) -> list[list[int]]:
        """Token ids, each chunk marked and padded to the same length; at least one."""
        ids: list[int] = self.tokenizer(
            prompt,
            add_special_tokens=False,
            verbose=False,  # no word about prompts of several chunks
        ).input_ids
        room, mark = self.length - 2, self.tokenizer
        parts = [ids[at : at + room] for at in range(0, len(ids), room)] or [[]]
        marked = [[mark.bos_token_id, *part, mark.eos_token_id] for part in parts]
        return [one + [mark.pad_token_id] * (self.length - len(one)) for one in marked]

    def encode(self, chunks: Sequence["Chunk"], rows: int) -> list[_Encoded]:
        """States `[L, D]` and pooled vector of each chunk.

        The model sees batches of `rows`: a chunk never depends on the others.
        """
        device = next(self.model.parameters()).device
        found: list[_Encoded] = []
        for at in range(0, len(chunks), rows):
            part = chunks[at : at + rows]
            padded = [*part, *[part[-1]] * (rows - len(part))]
            ids = torch.tensor([one.ids for one in padded], device=device)
            with applied([one.adapters for one in padded]):
                out = self.model(ids, output_hidden_states=True)
            states = {skip: self._states(out, skip) for skip in {one.skip for one in part}}
            for i, one in enumerate(part):
                pooled = out.text_embeds[i].float() if self.projected else None
                found.append((states[one.skip][i].float(), pooled))
        return found

    def _states(self, out: Any, skip: int) -> Tensor:
        if self.penultimate:
            return out.hidden_states[-(skip + 2)]  # type: ignore[no-any-return]
        if not skip:
            return out.last_hidden_state  # type: ignore[no-any-return]
        inner: Any = getattr(self.model, "text_model", self.model)
        normalised: Tensor = inner.final_layer_norm(out.hidden_states[-(skip + 1)])
        return normalised


@dataclass(eq=False)
class TextEncoders:
    """All towers of a model: one context per prompt, whose parts are what the U-Net takes.

    Parts: states `[L, D]`; with SDXL the pooled vector `[P]` and the sizes `[6]`; with a denoiser
    that takes the guidance scale as an input (`guidance_width`), its embedding `[G]` at the end.
    """

    towers: tuple[Tower, ...]
    device: torch.device
    width: int  # of the states
    clip_skip: int = 0
    empty_is_zero: bool = False
    guidance_width: int | None = None
    rows: int | None = None  # of the towers' batches; None: what suits the device
    _cache: OrderedDict[tuple[object, ...], _Encoded] = field(default_factory=OrderedDict)

    @property
    def text_rows(self) -> int:
        """Chunks that a tower reads at once; short batches are padded."""
        return self.rows or text_rows(self.device)

    @property
    def context_length(self) -> int:
        """Tokens of one chunk; prompts of more have more chunks."""
        return self.towers[0].length

    def is_truncated(self, prompt: str) -> bool:
        """Never: a long prompt is read in chunks."""
        return False

    def check(self, context: Context) -> None:
        """Raise ValueError if these are not the parts that the U-Net takes."""
        states = context[0]
        if states.ndim != 2 or states.shape[1] != self.width or len(states) % self.context_length:
            raise ValueError(
                f"context is {tuple(states.shape)}; this model takes (n x {self.context_length}, "
                f"{self.width})"
            )

    @torch.inference_mode()
    def conditioning(
        self,
        prompt: str,
        negative: str | None,
        guidance_scale: float,
        size: Size,
        adapters: Adapters | None = None,
    ) -> Conditioning:
        """Both contexts, of equal length: the shorter is continued with empty chunks.

        As everywhere in this family a scale of 1 or less means no guidance.
        """
        states = self._encoded(self._texts((prompt, negative, adapters)))
        context, unconditional = (self._parts(one, size, guidance_scale) for one in states)
        if negative is None and self.empty_is_zero:
            zeros = [torch.zeros_like(part) for part in unconditional[:2]]
            unconditional = (*zeros, *unconditional[2:])
        unguided = self.guidance_width is not None or guidance_scale <= 1
        return Conditioning(context, unconditional, 1.0 if unguided else guidance_scale)

    @torch.inference_mode()
    def prepare(self, wanted: Sequence[Wanted]) -> None:
        """Encode what is not known yet, so that `conditioning` finds it."""
        self._encoded([text for one in wanted for text in self._texts(one)])

    def _texts(self, wanted: Wanted) -> list[_Text]:
        """The prompt and the negative one, in as many chunks."""
        prompt, negative, adapters = wanted[0], wanted[1] or "", wanted[2]
        count = max(self._count(prompt), self._count(negative))
        return [
            _Text(prompt, count, self.clip_skip, adapters),
            _Text(negative, count, 0, adapters),
        ]

    def _count(self, prompt: str) -> int:
        return max(len(tower.chunks(prompt)) for tower in self.towers)

    def _parts(self, encoded: _Encoded, size: Size, guidance_scale: float) -> Context:
        states, pooled = encoded
        parts = [states]
        if pooled is not None:
            width, height = size
            # Original size, where it was cropped, size: as if the picture was made to be this.
            sizes = [height, width, 0, 0, height, width]
            parts += [pooled, torch.tensor(sizes, dtype=torch.float32, device=self.device)]
        if self.guidance_width is not None:
            parts.append(_guidance_embedding(guidance_scale, self.guidance_width).to(self.device))
        return tuple(parts)

    def _encoded(self, texts: Sequence[_Text]) -> list[_Encoded]:
        """Of each text, from the cache where it is there."""
        new = {text.key: text for text in texts if text.key not in self._cache}
        found = dict(zip(new, self._encode([*new.values()]), strict=True))
        found |= {text.key: self._cache[text.key] for text in texts if text.key not in new}
        for key, encoded in found.items():
            self._cache[key] = encoded
            self._cache.move_to_end(key)
        while len(self._cache) > _CACHED:
            self._cache.popitem(last=False)
        return [found[text.key] for text in texts]

    def _encode(self, texts: Sequence[_Text]) -> list[_Encoded]:
        states: list[list[Tensor]] = [[] for _ in texts]  # by text, of each tower
        pooled: list[Tensor | None] = [None] * len(texts)
        for tower in self.towers:
            chunks: list[Chunk] = []
            for text in texts:
                ids = tower.chunks(text.prompt)
                ids += tower.chunks("") * (text.count - len(ids))
                chunks += [Chunk(one, text.skip, text.adapters) for one in ids]
            encoded = iter(tower.encode(chunks, self.text_rows))
            for i, text in enumerate(texts):
                own = [next(encoded) for _ in range(text.count)]
                states[i].append(torch.cat([one for one, _ in own]))
                pooled[i] = own[0][1] if own[0][1] is not None else pooled[i]
        return [(torch.cat(one, dim=1), two) for one, two in zip(states, pooled, strict=True)]


def _guidance_embedding(scale: float, width: int) -> Tensor:
    """Sinusoids of the guidance scale less one, `[width]` (Meng et al. 2023, appendix)."""
    half = width // 2
    frequency = torch.exp(torch.arange(half) * -(torch.log(torch.tensor(10000.0)) / (half - 1)))
    angle = (scale - 1) * 1000.0 * frequency
    return nn.functional.pad(torch.cat([angle.sin(), angle.cos()]), (0, width % 2))
