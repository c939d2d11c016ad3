"""One tiny random bundle for all model tests."""

from pathlib import Path

import pytest

from models.bundle import Bundle, load_bundle
from tests.models.tiny import build_tiny_bundle


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> Bundle:
    return load_bundle(tiny_folder)
