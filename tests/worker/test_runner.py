"""A worker in this process, on a real Redis."""

from collections.abc import Callable
from typing import Any

from app.jobs.record import JobStatus
from app.settings import Settings
from app.storage.folder import FolderStorage


def test_a_job_becomes_an_image(
    jobs: Any, start_worker: Callable[..., Any], settings: Settings
) -> None:
    start_worker()
    record = jobs.ended(jobs.submit(n=2, seed=5))
    assert record.status is JobStatus.SUCCEEDED
    assert [image.seed for image in record.images] == [5, 6]
    storage = FolderStorage(settings.images_dir)
    assert all(len(storage.read(image.name)) == image.bytes for image in record.images)
