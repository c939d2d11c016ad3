"""What the sentence encoder says is asked for once."""

import json
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from tests.models.train.runs import SMALL_CLIP, train

PARTS = 32


class Encoder:
    """As the library's, with numbers that follow from the letters."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, path: str, device: str) -> "Encoder":
        torch.rand(7)  # as a model that is built before its weights are read
        return self

    def get_sentence_embedding_dimension(self) -> int:
        return PARTS

    def encode(self, phrases: list[str], **_: Any) -> Tensor:
        self.asked.append(len(phrases))
        codes = torch.tensor([zlib.crc32(phrase.encode()) for phrase in phrases])
        return normalize(torch.sin(codes[:, None] * torch.arange(1, PARTS + 1)).float(), dim=1)


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Encoder:
    found = Encoder()
    monkeypatch.setitem(
        sys.modules, "sentence_transformers", type("Library", (), {"SentenceTransformer": found})
    )
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "weights").write_text("1")
    return found


def run(folder: Path, out: Path, steps: int) -> str:
    options = [*SMALL_CLIP[:4], "--teacher", str(out.parent / "encoder")]
    assert train("clip", folder, out, steps, *options) == 0
    return (out / "clip" / "clip.jsonl").read_text()


def test_a_call_that_resumes_asks_nothing_again(
    folder: Path, tmp_path: Path, encoder: Encoder
) -> None:
    run(folder, tmp_path / "parts", 1)
    parts = run(folder, tmp_path / "parts", 2)
    assert len(encoder.asked) == 1
    whole = run(folder, tmp_path / "whole", 2)
    assert losses(parts) == losses(whole)
    kept = tmp_path / "parts" / "decoded"
    (tmp_path / "fresh").mkdir()
    kept.rename(tmp_path / "fresh" / "decoded")
    assert losses(run(folder, tmp_path / "fresh", 2)) == losses(whole)  # from what was kept
    assert len(encoder.asked) == 2


def losses(lines: str) -> list[float]:
    return [json.loads(line)["distillation"] for line in lines.splitlines()]


@pytest.mark.parametrize("change", ["captions", "encoder", "damage"])
def test_what_is_of_other_words_is_asked_for_again(
    folder: Path, tmp_path: Path, encoder: Encoder, change: str
) -> None:
    run(folder, tmp_path / "out", 1)
    kept = tmp_path / "out" / "decoded" / "teacher.safetensors"
    if change == "captions":
        next(folder.glob("*.json")).write_text('{"caption": "a zebra"}')
    elif change == "encoder":
        (tmp_path / "encoder" / "weights").write_text("22")
    else:
        kept.write_bytes(kept.read_bytes()[:-100])
    run(folder, tmp_path / "out", 2)
    assert len(encoder.asked) == 2
