"""The judge's training: what belongs together, worn pictures, and a judge at the end."""

from pathlib import Path

import pytest
import torch

from models.judge import Judge
from models.train.batches import Batch
from models.train.commands import main
from models.train.judge import belonging, soft_contrastive, wear

BATCH = Batch(
    torch.zeros(3, 4, 8, 8),
    ["a cat inside an avocado", "a blue fox", "two cats"],
    [None, None, None],
    [("cat", "avocado"), ("fox",), ("cat",)],
)


def test_a_text_belongs_to_every_picture_that_shows_its_thing() -> None:
    texts, belongs = belonging(BATCH)
    assert sorted(texts) == sorted({*BATCH.captions, "cat", "avocado", "fox"})
    assert belongs[:, texts.index("cat")].tolist() == [True, False, True]
    assert belongs[:, texts.index("a blue fox")].tolist() == [False, True, False]
    assert belongs.sum().item() == 3 + 2 + 2


def test_the_loss_is_least_where_all_that_belongs_is_near() -> None:
    _, belongs = belonging(BATCH)
    right = soft_contrastive(30.0 * belongs, belongs)
    one_only = soft_contrastive(30.0 * belongs * torch.eye(*belongs.shape), belongs)
    assert right < one_only
    assert right < soft_contrastive(torch.zeros(belongs.shape), belongs)


def test_worn_pictures_are_reproducible_and_still_the_picture() -> None:
    disc = torch.full((6, 4, 32, 32), -1.0)
    disc[:, 0, 8:24, 8:24] = disc[:, 3, 8:24, 8:24] = 1.0
    worn, again = (wear(disc, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(worn, again)
    assert float(worn.min()) >= -1
    assert float(worn.max()) <= 1
    assert not torch.equal(worn[0], worn[1])
    assert (worn[:, 3, 14:18, 14:18] > 0).all()  # its middle is still there
    assert (worn[:, 3, 0] < 0).all()  # and its rim is still transparent


def test_a_judge_is_trained_resumed_and_read(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "judge"
    for steps in ("2", "3"):
        command = ["judge", "--data", str(folder), "--out", str(out), "--image-size", "32"]
        assert main([*command, "--steps", steps, "--batch-size", "6", "--scenes", "0.5"]) == 0
    assert len((out / "judge.jsonl").read_text().splitlines()) == 3
    judge = Judge.from_folder(out)
    likeness = judge.similarity(torch.zeros(2, 4, 16, 16), ["a disc", "a square"])
    assert likeness.shape == (2, 2)
    assert likeness.isfinite().all()


@pytest.mark.parametrize("options", [("--image-size", "63"), ("--batch-size", "1")])
def test_sizes_that_a_judge_has_not_are_one_sentence(
    options: tuple[str, str], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["judge", "--data", str(folder), "--out", str(tmp_path / "judge"), "--steps", "1"]
    assert main([*command, "--image-size", "32", *options]) == 1
    assert f"avocat train: {' is '.join(options)}; a judge" in capsys.readouterr().err
