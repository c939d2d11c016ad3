"""Option values that are none, or that do not go together, are one sentence each."""

import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from models.train.clip import build, model_config
from tests.models.train.runs import SMALL_CLIP, train


@pytest.mark.parametrize(
    ("part", "option", "value"),
    [
        ("clip", "--threads", "-1"),
        ("clip", "--loaders", "-1"),
        ("clip", "--device", "foo"),
        ("clip", "--device", "cuda:99"),
        ("clip", "--seed", "1" + 24 * "0"),
        ("clip", "--recolour", "nan"),
        ("clip", "--scenes", "9"),
        *(("clip", "--width", width) for width in ("0", "-4", "100", "200")),
        *(("denoiser", "--learning-rate", rate) for rate in ("nan", "-1", "1e30")),
        ("distil", "--guidance-scale", "nan"),
    ],
)
def test_values_that_are_none_are_refused(
    part: str, option: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        train(part, tmp_path, tmp_path, 1, option, value)
    assert f"argument {option}: {value}" in capsys.readouterr().err.replace("'", "")


@pytest.mark.parametrize("width", [64, 128, 512])
def test_a_clip_has_whole_heads_at_every_width(width: int) -> None:
    model, _ = build(model_config(16, width))
    assert model.encode_image(torch.zeros(1, 3, 16, 16)).shape == (1, width)
    assert model_config(16, 192)["vision_cfg"]["width"] == 128


@pytest.mark.parametrize(
    ("parts", "sentence"), [(None, "is no sentence encoder: no modules.json"), (16, "at most 16")]
)
def test_a_teacher_that_does_not_do_is_one_sentence(
    folder: Path,
    tmp_path: Path,
    parts: int | None,
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    encoder = Mock(**{"get_sentence_embedding_dimension.return_value": parts})
    failing = ValueError("no modules.json") if parts is None else None
    library = Mock(SentenceTransformer=Mock(return_value=encoder, side_effect=failing))
    monkeypatch.setitem(sys.modules, "sentence_transformers", library)
    options = [*SMALL_CLIP[:4], "--teacher", str(tmp_path)]
    assert train("clip", folder, tmp_path / "out", 1, *options) == 1
    assert sentence in capsys.readouterr().err
    encoder.encode.assert_not_called()


def test_weights_may_be_read_by_whom_the_umask_lets(folder: Path, clip_only: Path) -> None:
    file = clip_only / "clip" / "open_clip_model.safetensors"
    assert file.stat().st_mode == (clip_only / "clip" / "clip.jsonl").stat().st_mode


def test_a_teacher_without_its_library_is_told_what_to_install(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    options = [*SMALL_CLIP[:4], "--teacher", str(tmp_path)]
    assert train("clip", folder, tmp_path / "out", 1, *options) == 1
    assert "pip install '.[train]'" in capsys.readouterr().err
