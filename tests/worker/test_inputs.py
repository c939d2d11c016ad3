"""Jobs that start from a picture, from Redis and storage to their images."""

import asyncio
import hashlib
import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import redis
from PIL import Image

from app import keys
from app.jobs.connection import connect_async
from app.jobs.record import JobRecord, JobStatus, StoredInput
from app.jobs.store import JobStore
from app.jobs.submit import Accepted, Submitter
from app.settings import Settings
from app.storage.base import StorageError
from app.storage.folder import FolderStorage
from models.bundle import Bundle
from models.pictures import to_picture, to_tensor
from tests.worker.conftest import Jobs
from tests.worker.parts import slowed

Start = Callable[..., Any]


def picture() -> Image.Image:
    shown = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    shown.paste((200, 40, 40, 255), (2, 2, 14, 14))
    return shown


def mask() -> Image.Image:
    shown = Image.new("L", (16, 16))
    shown.paste(255, (0, 0, 8, 16))
    return shown


class Edits:
    """Submits jobs with inputs, as the API does."""

    def __init__(self, jobs: Jobs, settings: Settings, url: str) -> None:
        self._jobs = jobs
        self._settings = settings
        self._url = url
        self.storage = FolderStorage(settings.images_dir)

    def submit(self, previews: int = 0, masked: bool = False, **changes: Any) -> JobRecord:
        files = {"init_image": picture()} | ({"mask": mask()} if masked else {})
        stored, hashes = [], {}
        record = self._jobs.record(seed=5, strength=0.5, **changes)
        for role, one in files.items():
            out = BytesIO()
            one.save(out, "PNG")
            data = out.getvalue()
            hashes[role] = hashlib.sha256(data).hexdigest()
            name = f"{record.id}_input_{role}.png"
            self.storage.write(name, data)
            stored.append(StoredInput(role=role, name=name, sha256=hashes[role], bytes=len(data)))
        request = record.request.model_copy(update=hashes)
        record = record.model_copy(update={
            "request": request, "inputs": tuple(stored), "total_steps": request.taken,
            "previews": previews,
        })  # fmt: skip
        assert asyncio.run(self._sent(record)) == Accepted(record.id)
        return record

    async def _sent(self, record: JobRecord) -> object:
        connection = connect_async(self._url)
        try:
            return await Submitter(connection, self._settings).submit(record)
        finally:
            await connection.aclose()

    def image(self, record: JobRecord) -> Image.Image:
        assert record.status is JobStatus.SUCCEEDED, record.error
        return Image.open(BytesIO(self.storage.read(record.images[0].name)))


@pytest.fixture
def edits(jobs: Jobs, settings: Settings, redis_url: str) -> Edits:
    return Edits(jobs, settings, redis_url)


def test_a_picture_is_drawn_from_another_and_says_so(
    edits: Edits, jobs: Jobs, start_worker: Start
) -> None:
    start_worker()
    asked = edits.submit()
    ended = jobs.ended(asked.id)
    assert (ended.step, ended.total_steps) == (3, 3)
    image = edits.image(ended)
    recipe = json.loads(image.info["avocat"])
    assert recipe["init_image"] == asked.inputs[0].sha256
    assert (recipe["mask"], recipe["strength"]) == (None, 0.5)
    assert "Denoising strength: 0.5" in image.info["parameters"]
    plain = edits.image(jobs.ended(jobs.submit(seed=5)))
    assert "init_image" not in json.loads(plain.info["avocat"])
    assert image.tobytes() != plain.tobytes()


def test_under_a_mask_the_rest_stays(edits: Edits, jobs: Jobs, start_worker: Start) -> None:
    start_worker()
    image = edits.image(jobs.ended(edits.submit(masked=True).id))
    expected = to_picture(to_tensor(picture(), 4))
    right = (8, 0, 16, 16)
    assert image.crop(right).tobytes() == expected.crop(right).tobytes()
    assert image.tobytes() != expected.tobytes()


def test_a_variation_has_the_picture_for_a_prompt(
    edits: Edits, jobs: Jobs, start_worker: Start, shared_bundle: Bundle
) -> None:
    context = shared_bundle.context
    [seen] = context.see(picture())
    assert float(seen.norm()) == pytest.approx(1, abs=1e-5)
    assert not seen.equal(context.empty)
    start_worker()
    variation = jobs.ended(edits.submit(prompt="").id)
    assert variation.images[0].clip_score is None
    described = jobs.ended(edits.submit(prompt="a red square").id)
    assert edits.image(variation).tobytes() != edits.image(described).tobytes()


def test_previews_and_cancellation_work_while_it_waits_for_its_picture(
    edits: Edits, jobs: Jobs, start_worker: Start, shared_bundle: Bundle, client: redis.Redis
) -> None:
    listening = client.pubsub()
    listening.subscribe(keys.EVENTS)
    start_worker(slowed(shared_bundle, 0.02))
    record = jobs.ended(edits.submit(previews=2, steps=12).id)
    assert record.status is JobStatus.SUCCEEDED
    told = []
    while (message := listening.get_message(timeout=0.2)) is not None:
        if message["type"] == "message":
            told.append(json.loads(message["data"]))
    shown = [one for one in told if one["kind"] == "preview" and one["job_id"] == record.id]
    assert [one["step"] for one in shown] == [2, 4]
    listening.close()
    long = edits.submit(steps=900)
    jobs.running(long.id)
    jobs.cancel(long.id)
    assert jobs.ended(long.id).status is JobStatus.CANCELED


def test_what_is_gone_or_another_fails_the_job_and_says_so(
    edits: Edits, jobs: Jobs, store: JobStore, start_worker: Start
) -> None:
    gone, other = edits.submit(), edits.submit()
    edits.storage.delete(gone.inputs[0].name)
    edits.storage.path(other.inputs[0].name).write_bytes(b"something else")
    start_worker()
    for record, said in ((gone, "init_image is gone"), (other, "init_image is damaged")):
        ended = jobs.ended(record.id)
        assert ended.status is JobStatus.FAILED
        assert ended.error is not None
        assert said in ended.error.detail


class Forgetful(FolderStorage):
    """Answers from the third question on."""

    asked = 0

    def read(self, name: str) -> bytes:
        self.asked += 1
        if self.asked < 3:
            raise StorageError("the bucket is away")
        return super().read(name)


def test_storage_that_is_away_for_a_while_costs_nothing(
    edits: Edits, jobs: Jobs, settings: Settings, start_worker: Start
) -> None:
    storage = Forgetful(settings.images_dir)
    start_worker(storage=storage, storage_patience_s=30)
    ended = jobs.ended(edits.submit().id)
    assert (ended.status, ended.attempts) == (JobStatus.SUCCEEDED, 1)
    assert storage.asked == 3


def test_a_lost_worker_leaves_the_picture_to_the_next(
    edits: Edits, jobs: Jobs, spawn_worker: Callable[..., Any], tmp_path: Path
) -> None:
    expected = edits.submit()
    first = spawn_worker(step_s=0.05)
    drawn = edits.image(jobs.ended(expected.id)).tobytes()
    again = edits.submit(cache=False)
    jobs.running(again.id)
    first.kill()
    spawn_worker()
    ended = jobs.ended(again.id)
    assert ended.attempts == 2
    assert edits.image(ended).tobytes() == drawn


def test_files_are_deleted_when_their_time_is_over(
    edits: Edits, jobs: Jobs, start_worker: Start, client: redis.Redis
) -> None:
    worker = start_worker()
    ended = jobs.ended(edits.submit().id)
    names = [ended.inputs[0].name, ended.images[0].name]
    assert all(edits.storage.exists(name) for name in names)
    client.zadd(keys.IMAGE_EXPIRY, dict.fromkeys(names, 1.0))
    worker.runner._recovery.expire_images()
    assert not any(edits.storage.exists(name) for name in names)
