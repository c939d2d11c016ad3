"""The figures of a CLIP, by judges whose answers are known; and words that no caption holds."""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models import clip_figures
from models.clip_figures import SYNONYMS
from models.judge import Judge
from models.train.captions import subject
from models.train.data import Captions, PictureSet, load_pictures

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "emoji"
NAMES = ("disc", "square", "star")


class Words:
    """A context for each word of a table; all else is far from every one of them."""

    def __init__(self, table: dict[str, int]) -> None:
        self.table = table

    def encode(self, prompts: Sequence[str]) -> Tensor:
        places = [self.table.get(prompt, 199 - i % 50) for i, prompt in enumerate(prompts)]
        return torch.eye(200)[places]


class ColourJudge(Judge):
    """Knows a drawing by its colour channel; in captions of two things it reads the first, or the
    second where `backwards`."""

    def __init__(self, backwards: bool = False) -> None:
        self.name, self.backwards = "test", backwards
        self.encoder = Words({})  # type: ignore[assignment]

    def similarity(self, pictures: Tensor, captions: Sequence[str]) -> Tensor:
        """How much of the thing's colour is in the middle, where what is inside something is."""
        middle = (pictures[:, :3, 7:9, 7:9] + 1).mean((2, 3))
        read = [
            [n for n in re.findall("[a-z]+", c) if n in NAMES][-1 if self.backwards else 0]
            for c in captions
        ]
        return middle[:, [NAMES.index(name) for name in read]]


@pytest.fixture
def drawings() -> PictureSet:
    pictures = torch.zeros(3, 4, 16, 16, dtype=torch.uint8)
    for channel in range(3):
        pictures[channel, channel] = pictures[channel, 3] = 255
    return PictureSet(pictures, [Captions(name) for name in NAMES])


def test_retrieval_ranks_the_drawings_for_each_caption(drawings: PictureSet) -> None:
    assert clip_figures.retrieval(ColourJudge(), drawings)["r@1"] == 1.0
    mixed = PictureSet(drawings.pictures[[0, 2, 1]], drawings.captions)
    wrong = clip_figures.retrieval(ColourJudge(), mixed)
    assert wrong["r@1"] == pytest.approx(1 / 3)
    assert wrong["r@5"] == 1.0


def test_order_pairs_tell_a_judge_that_reads_the_order_from_one_that_reads_it_backwards(
    drawings: PictureSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = [p for p in clip_figures.PLACEMENTS if p.words[0] == "inside"]
    monkeypatch.setattr(clip_figures, "PLACEMENTS", inside)
    assert clip_figures.order_pairs(ColourJudge(), drawings, 20)["right"] == 1.0
    assert clip_figures.order_pairs(ColourJudge(backwards=True), drawings, 20)["right"] == 0.0


def test_a_context_that_forgets_the_order_is_seen(drawings: PictureSet) -> None:
    class Bag(Words):
        def encode(self, prompts: Sequence[str]) -> Tensor:
            return torch.stack([sum(super(Bag, self).encode(p.split())) for p in prompts])

    judge = ColourJudge()
    judge.encoder = Bag({name: i for i, name in enumerate(NAMES)})  # type: ignore[assignment]
    figures = clip_figures.order_pairs(judge, drawings, 20)
    assert figures["context_cosine"] > 0.5
    assert figures["scenes"] == 40


def test_synonyms_count_the_words_that_are_nearest_to_what_they_mean() -> None:
    names = {name: i for i, name in enumerate(dict.fromkeys(SYNONYMS.values()))}
    known = {word: names[name] for word, name in list(SYNONYMS.items())[:7]}
    right = clip_figures.synonyms(Words(names | known))["right"]  # type: ignore[arg-type]
    assert right == pytest.approx(7 / len(SYNONYMS))
    wrong = {word: (names[name] + 1) % len(names) for word, name in SYNONYMS.items()}
    assert clip_figures.synonyms(Words(names | wrong))["right"] == 0.0  # type: ignore[arg-type]


def test_both_things_of_a_scene_are_to_be_found(drawings: PictureSet) -> None:
    class Blind(ColourJudge):
        def similarity(self, pictures: Tensor, captions: Sequence[str]) -> Tensor:
            return -torch.arange(float(len(captions))).expand(len(pictures), -1)

    first_in_the_list = clip_figures.both_found(Blind(), drawings, 5)
    assert first_in_the_list == {"both_found": 1.0, "scenes": 5}


@pytest.mark.slow
@pytest.mark.skipif(not REAL.exists(), reason="the training pictures are not here")
def test_no_caption_of_the_real_data_holds_a_synonym() -> None:
    import random

    rng = random.Random(0)
    entries = load_pictures(REAL, 8, progress=False).captions
    said = {w for e in entries for w in re.findall("[a-z]+", e.name.lower())}
    said |= {w for e in entries for _ in range(40) for w in subject(e, rng).lower().split()}
    assert not said & set(SYNONYMS)
