"""Running applications for the tests of `app`."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import structlog

from app import logs
from tests.app.service import Serve, Service, serving


@pytest.fixture
def serve(redis_url: str, tmp_path: Path) -> Serve:
    """Runs an application: `async with serve(queue_cap=1) as service`."""
    return serving(redis_url, tmp_path)


@pytest.fixture
async def service(serve: Serve) -> AsyncIterator[Service]:
    """An application with default settings, open to everyone, and one model announced."""
    async with serve() as running:
        yield running


@pytest.fixture(autouse=True)
def _logs() -> Iterator[None]:
    logs.configure("warning")
    yield
    structlog.reset_defaults()  # tests elsewhere read what is logged at lower levels
