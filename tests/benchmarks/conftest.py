"""A plan that measures the tiny bundle for a moment."""

from pathlib import Path

import pytest

from app.settings import Settings
from benchmarks.subject import Plan
from tests.models.tiny import build_tiny_bundle


@pytest.fixture(scope="session")
def bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="session")
def plan(bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    data_dir = tmp_path_factory.mktemp("data")
    settings = Settings(
        bundle=bundle_path,
        data_dir=data_dir,
        device="cpu",
        threads=1,
        slots=4,
        micro_batch=2,
        runtime="eager",
    )
    return Plan(0.05, settings, "the command")
