"""One tiny model and one running service for the tests that can share them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.service import Service
from tests.models.tiny import build_tiny_bundle


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny", composes=True)


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> Iterator[Service]:
    """A service that tests may load but must leave running."""
    folder = tmp_path_factory.mktemp("service") / "data"
    with Service(folder, tiny_bundle, webhook_allow="127.0.0.1") as running:
        yield running
