from pathlib import Path

import pytest

from tests.models.train.runs import SMALL_CLIP, train


@pytest.fixture
def clip_only(folder: Path, tmp_path: Path) -> Path:
    out = tmp_path / "bundle"
    assert train("clip", folder, out, 2, *SMALL_CLIP) == 0
    return out
