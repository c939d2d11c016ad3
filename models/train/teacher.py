"""A sentence encoder's embeddings of words and names, to distil a CLIP's text tower from."""

import hashlib
import json
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from models.errors import ModelError
from models.replacing import replacing
from models.train import parallel

__all__ = ["Teacher"]


class Teacher:
    """Embeddings of every phrase of the captions and every word of the vocabulary.

    To make them takes a minute or two, so they are kept, and a call that resumes begins at once.
    """

    def __init__(
        self, path: str, phrases: list[str], tokenizer: Any, width: int, kept: Path
    ) -> None:
        """`width`: of the token embeddings that are to start as parts of its own; `kept`: where.

        Raises:
            ModelError: the folder holds no sentence encoder, or one of fewer parts.
        """
        pieces = [tokenizer.decoder[i].replace("</w>", "") for i in range(tokenizer.vocab_size)]
        words = sorted({p for p in pieces if p.isascii() and p.isalpha() and len(p) > 2})
        self.phrases = [*sorted(set(phrases)), *words]
        self.captioned = len(set(phrases))
        self.targets = _targets(path, self.phrases, width, kept)
        by_word = {phrase: i for i, phrase in enumerate(self.phrases)}
        self.known = [(i, by_word[p]) for i, p in enumerate(pieces) if p in by_word]

    def draw(self, rng: random.Random, count: int) -> list[int]:
        """Indices of `count` phrases: half from the captions' words, half from the vocabulary."""
        own = rng.choices(range(self.captioned), k=count - count // 2)
        return own + rng.choices(range(self.captioned, len(self.phrases)), k=count // 2)

    def start_embeddings(self, embedding: nn.Embedding) -> None:
        """Start token embeddings at the principal components of their words' targets."""
        rows, index = (torch.tensor(side) for side in zip(*self.known, strict=True))
        centred = self.targets - self.targets.mean(0)
        _, _, basis = torch.linalg.svd(
            centred[:: max(1, len(centred) // 8192)], full_matrices=False
        )
        reduced = centred[index] @ basis[: embedding.embedding_dim].T
        with torch.no_grad():
            embedding.weight[rows] = reduced * (0.02 / reduced.std())


def _targets(path: str, phrases: list[str], width: int, kept: Path) -> Tensor:
    """Unit vectors `[P, E]`, float32: those that were kept, if they are of these phrases."""
    of = _fingerprint(path, phrases)
    if (known := _read(kept, of)) is not None:
        _check_width(path, known.shape[1], width)
        return known
    with torch.random.fork_rng(devices=[]):  # what is drawn afterwards is the same either way
        encoder = _encoder(path)
        _check_width(path, int(encoder.get_sentence_embedding_dimension() or 0), width)
        options = {"batch_size": 256, "normalize_embeddings": True, "convert_to_tensor": True}
        targets: Tensor = encoder.encode(phrases, show_progress_bar=True, **options).clone()
    if parallel.rank() == 0:
        with suppress(OSError, ModelError):  # a full disk: they are made again next time
            _keep(kept, of, targets)
    return targets


def _encoder(path: str) -> Any:
    try:
        from sentence_transformers import SentenceTransformer

        return SentenceTransformer(path, device="cpu")
    except ModuleNotFoundError:
        raise ModelError(
            "a teacher is read by sentence-transformers, which is not installed: "
            "pip install '.[train]', or give --teacher none"
        ) from None
    except Exception as fault:  # it raises many kinds; all mean that there is none
        first = str(fault).splitlines()[0] if str(fault) else type(fault).__name__
        raise ModelError(f"--teacher {path!r} is no sentence encoder: {first}") from None


def _check_width(path: str, parts: int, width: int) -> None:
    if width > parts:
        raise ModelError(
            f"--width is {width}; with the teacher {path!r} it can be at most {parts}, and "
            f"anything with --teacher none"
        )


def _fingerprint(path: str, phrases: list[str]) -> str:
    """Changes with the phrases, and with names, sizes and times of the encoder's files."""
    files = sorted(one for one in Path(path).rglob("*") if one.is_file())
    states = [(str(one), one.stat().st_size, one.stat().st_mtime_ns) for one in files]
    return hashlib.sha256(json.dumps([path, states, phrases]).encode()).hexdigest()


def _read(kept: Path, of: str) -> Tensor | None:
    """None where there is nothing, or it is damaged, of other phrases or by another encoder."""
    with suppress(OSError, SafetensorError), safe_open(kept, "pt") as tensors:
        if (tensors.metadata() or {}).get("of") == of:
            found: Tensor = tensors.get_tensor("targets")
            return found
    return None


def _keep(kept: Path, of: str, targets: Tensor) -> None:
    kept.parent.mkdir(parents=True, exist_ok=True)
    with replacing(kept) as handle:
        handle.write(save({"targets": targets.contiguous()}, {"of": of}))
