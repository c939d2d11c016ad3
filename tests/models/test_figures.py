"""The figures of `avocat evaluate`, on pictures whose figures are known."""

import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from app.jobs.scene import read_scene
from models import figures
from models.bundle import Bundle
from models.evaluate import Painter, against_default, main
from models.judge import Judge
from models.layout import lay
from models.sampling import layer_seed
from models.train.data import Captions, PictureSet
from tests.models.tiny import build_tiny_bundle

RGB = {"red": (1, 0, 0), "blue": (0.1, 0.3, 1), "white": (1, 1, 1), "black": (0, 0, 0)}


class KnowingJudge(Judge):
    """Reads the index that a picture carries in its first pixel: [row, 0] and [row, 1]."""

    def __init__(self) -> None:
        self.name = "test"

    def similarity(self, pictures: Tensor, captions: Sequence[str]) -> Tensor:
        likes = torch.zeros(len(pictures), len(captions))
        for row, picture in enumerate(pictures):
            for strength, place in enumerate(picture[0, 0].tolist()):
                if place >= 0:
                    likes[row, int(place)] = 2 - strength
        return likes


def carrying(*rows: Sequence[int]) -> Tensor:
    pictures = torch.full((len(rows), 4, 2, 2), -1.0)
    for row, places in enumerate(rows):
        pictures[row, 0, 0, : len(places)] = torch.tensor([float(p) for p in places])
    return pictures


def test_recall_counts_first_places() -> None:
    recall = KnowingJudge().recall(carrying([2], [5, 1]), list("abcdefgh"), [2, 1])
    assert recall["r@1"] == 0.5
    assert recall["r@5"] == 1.0


@pytest.mark.parametrize(
    ("prompt", "pair"),
    [
        ("a cat inside an avocado", ("cat", "avocado")),
        ("a house made of cheese", ("house", "cheese")),
        ("a red apple wearing a top hat", ("red apple", "top hat")),
        ("a blue cat face", None),
    ],
)
def test_a_composed_prompt_has_two_parts(prompt: str, pair: tuple[str, str] | None) -> None:
    assert figures.parts(prompt) == pair


def test_composed_asks_for_both_things() -> None:
    prompts = ["a cat inside an avocado", "a pink elephant", "a fox on a skateboard"]

    def paint(asked: Sequence[str], _: int) -> Tensor:
        assert asked == [prompts[0], prompts[2]]
        return carrying([0, 1], [2, 90])  # captions: cat, avocado, fox, skateboard, …

    found = figures.composed(paint, KnowingJudge(), prompts, 0)
    assert found["both_found"] == 0.5


def test_coloured_looks_at_the_pixels() -> None:
    def paint(asked: Sequence[str], _: int) -> Tensor:
        pictures = torch.ones(len(asked), 4, 8, 8)
        for row, prompt in enumerate(asked):
            shown = RGB.get(prompt.split()[1], (0.1, 0.3, 1))  # blue for every other colour
            pictures[row, :3] = torch.tensor(shown, dtype=torch.float32)[:, None, None] * 2 - 1
        return pictures

    assert figures.coloured(paint, ["ball"], 0)["right"] == pytest.approx(4 / 12)


def test_diversity_is_a_share_of_that_of_the_drawings() -> None:
    drawn = torch.stack([torch.zeros(4, 4, 4), torch.full((4, 4, 4), 255.0)]).byte()
    data = PictureSet(drawn, [Captions("star"), Captions("star")])

    def paint(asked: Sequence[str], _: int) -> Tensor:
        half = torch.arange(len(asked)).float().reshape(-1, 1, 1, 1) % 2  # 0 or 1
        return (half - 0.5).expand(-1, 4, 4, 4)

    share = figures.diversity(paint, ["star", "unknown"], data, 0)
    assert share["subjects"] == 1
    assert share["share"] == pytest.approx(0.5 * 16 / 28, rel=1e-4)  # 16 of 28 pairs differ


def test_copies_are_those_within_two_percent() -> None:
    known = torch.zeros(1, 4, 4, 4, dtype=torch.uint8)
    made = torch.stack([torch.full((4, 4, 4), -1.0), torch.full((4, 4, 4), -0.9)])
    assert figures.copies(made, PictureSet(known, [Captions("x")]))["copies"] == 1


def test_styles_and_captions_of_the_judge(tiny: Bundle) -> None:
    judge = Judge(tiny.context, "tiny")
    unseen = [Captions("cat face", style="noto"), Captions("new thing", style="fluent-3d")]

    def paint(asked: Sequence[str], _: int) -> Tensor:
        assert asked == ["cat face, noto style", "new thing, fluent 3d style"]
        return torch.zeros(2, 4, 16, 16)

    assert figures.styled(paint, judge, unseen, 0)["captions"] == 100


def pack(folder: Path, *shards: str) -> None:
    """Tars of what lies in the folder."""
    for shard in shards:
        with tarfile.open(folder / shard, "w") as tar:
            for file in folder.glob("*_*.*"):
                tar.add(file, file.name)


def test_the_command_writes_every_figure(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = build_tiny_bundle(tmp_path / "bundle")
    (folder / "heldout.txt").write_text("prompt\ta disc inside a square\n")
    pack(folder, "shard-000.tar", "heldout-000.tar")
    monkeypatch.setattr(figures, "COLOURED", "disc")
    options = ["--judge", str(bundle), "--data", str(folder), "--steps", "1"]
    sheets = ["--sheet", str(tmp_path / "sheet.png"), "--scenes", str(tmp_path / "scenes.png")]
    assert main([str(bundle), *options, *sheets]) == 0
    written = json.loads((bundle / "evaluation.json").read_text())
    assert written["judge"].startswith("a CLIP trained apart")
    assert written["subjects"]["pictures"] == 100
    assert written["composed"]["pictures"] == 1
    assert written["colours"]["pictures"] == 12
    assert written["unseen_styles"]["pictures"] == 6
    assert written["judge_on_drawings"]["naming"]["pictures"] == 6
    assert written["clip"]["order"]["scenes"] == 400
    assert (tmp_path / "sheet.png").exists()
    assert (tmp_path / "scenes.png").exists()
    assert (written["compose"], written["scenes"]["pictures"]) == (False, 60)


@pytest.mark.parametrize("heldout", [None, "prompt\ta blue disc\n"])
def test_a_folder_that_holds_nothing_out_has_the_other_figures(
    heldout: str | None, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = build_tiny_bundle(tmp_path / "bundle")
    if heldout is not None:
        (folder / "heldout.txt").write_text(heldout)
    monkeypatch.setattr(figures, "COLOURED", "disc")
    assert main([str(bundle), "--data", str(folder), "--steps", "1"]) == 0
    written = json.loads((bundle / "evaluation.json").read_text())
    assert written["copies"]["pictures"] == 100
    assert written["colours"]["pictures"] == 12
    assert "composed" not in written


def test_a_folder_without_pictures_is_told_before_anything_is_painted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = build_tiny_bundle(tmp_path / "bundle")
    monkeypatch.setattr(Painter, "__call__", None)
    assert main([str(bundle), "--data", str(tmp_path / "none")]) == 1
    assert str(tmp_path / "none") in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("--steps", "0", "at least 1"),
        ("--guidance-scale", "nan", "between 0 and 20"),
        ("--seed", "1" + 24 * "0", "from 0 to"),
        ("--sheet", "none/sheet.png", "not a file in a folder"),
        ("--sheet", "sheet", "should end in .png"),
        ("--scenes", "scenes.json", "should end in .png"),
    ],
)
def test_options_are_looked_at_before_anything_is_painted(
    option: str, value: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["none", option, value])
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("name", ["heldout.txt", "heldout-000.tar"])
def test_what_is_held_out_is_read_before_anything_is_painted(
    name: str,
    tmp_path: Path,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundle = build_tiny_bundle(tmp_path / "bundle")
    (folder / name).write_bytes(b"prompt\t\xff\n")
    monkeypatch.setattr(Painter, "__call__", None)
    assert main([str(bundle), "--data", str(folder)]) == 1
    assert f"{name}' " in capsys.readouterr().err


def test_ctrl_c_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = build_tiny_bundle(tmp_path / "bundle")

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Painter, "__call__", stopped)
    assert main([str(bundle)]) == 130
    assert capsys.readouterr().err.startswith("stopped")
    assert not (bundle / "evaluation.json").exists()


def test_figures_that_could_not_be_kept_are_not_painted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = build_tiny_bundle(tmp_path / "bundle")
    monkeypatch.setattr("os.access", lambda *_: False)  # these tests may run as root
    monkeypatch.setattr(Painter, "__call__", None)
    assert main([str(bundle)]) == 1
    assert "evaluation.json' cannot be written" in capsys.readouterr().err


def test_a_preset_is_held_against_the_bundle_itself(tmp_path: Path) -> None:
    bundle = build_tiny_bundle(tmp_path / "bundle", turbo=True)
    assert main([str(bundle), "--preset", "turbo", "--steps", "1"]) == 0
    file = bundle / "evaluation-turbo.json"
    turbo = json.loads(file.read_text())
    assert turbo["against_default"] is None  # of which nothing is known yet
    own = turbo | {"subjects": {"r@1": 0.8}}
    (bundle / "evaluation.json").write_text(json.dumps(own))
    measured = turbo | {"subjects": {"r@1": 0.6}}
    assert against_default(measured, bundle / "evaluation.json") == pytest.approx(0.75)
    assert against_default(measured | {"seed": 1}, bundle / "evaluation.json") is None


def test_a_folder_without_a_clip_is_no_judge(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = build_tiny_bundle(tmp_path / "bundle")
    assert main([str(bundle), "--judge", str(tmp_path / "none")]) == 1
    assert "did not load" in capsys.readouterr().err


def test_scenes_name_two_common_things_each() -> None:
    prompts = figures.scenes()
    assert len(set(prompts)) == 60
    pairs = [figures.parts(prompt) for prompt in prompts]
    assert all(pair and set(pair) <= set(figures.subjects()) for pair in pairs)
    assert all(read_scene(prompt) for prompt in [*prompts, *figures.listed(figures.SHOWN)])


def test_a_painter_composes_as_the_service_does(tiny: Bundle) -> None:
    prompts = ["a cat inside an avocado", "a red apple"]
    composed = Painter(tiny, steps=2, read=read_scene)(prompts, 3)
    whole = Painter(tiny, steps=2)(prompts, 3)
    assert not torch.equal(composed[0], whole[0])
    things = (
        Painter(tiny, steps=2)(["a cat"], 3)[0],
        Painter(tiny, steps=2)(["an avocado"], layer_seed(3, 1))[0],
    )
    scene = read_scene(prompts[0])
    assert scene is not None
    assert torch.allclose(composed[0], lay(scene, things), atol=1e-3)
    assert torch.allclose(composed[1], whole[1], atol=1e-4)
