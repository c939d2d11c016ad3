"""Pictures of several layers, from the queue to storage: drawn in one batch, laid together."""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
import torch
from PIL import Image

from app import keys
from app.jobs.models import ModelCard
from app.jobs.record import JobRecord, JobStatus
from app.jobs.scene import Scene, read_scene
from app.settings import Settings
from app.storage.folder import FolderStorage
from models.bundle import Bundle, load_bundle
from models.layout import lay
from models.pictures import to_picture
from models.sampling import layer_seed, sample
from tests.models.tiny import build_tiny_bundle
from tests.worker.conftest import wait_for
from tests.worker.parts import broken_for
from worker.card import fingerprint

Start = Callable[..., Any]
AVOCADO = "a cat inside an avocado"
SCENE: dict[str, Any] = {
    "prompt": AVOCADO,
    "compose": True,
    "scene": read_scene(AVOCADO),
    "steps": 8,
}


@pytest.fixture
def image(settings: Settings) -> Callable[[JobRecord, int], Image.Image]:
    storage = FolderStorage(settings.images_dir)

    def read(record: JobRecord, index: int = 0) -> Image.Image:
        assert record.status is JobStatus.SUCCEEDED, record.error
        return Image.open(io.BytesIO(storage.read(record.images[index].name)))

    return read


@pytest.mark.parametrize("size", ["16x16", "64x64"])
def test_a_scene_is_its_layers_laid_together(
    jobs: Any, start_worker: Start, image: Any, shared_bundle: Bundle, size: str
) -> None:
    start_worker()
    whole = jobs.ended(jobs.submit(seed=5, size=size, **SCENE))
    things = sample(
        *(shared_bundle.denoiser, shared_bundle.schedule),
        *(shared_bundle.context.encode(["a cat", "an avocado"]), shared_bundle.context.empty),
        *((5, layer_seed(5, 1)), (4, 16, 16)),
        steps=8,
        parameterisation=shared_bundle.config.parameterisation,
    )
    scene, pixels = read_scene(AVOCADO), int(size.partition("x")[0])
    assert scene is not None
    large = [shared_bundle.develop(one, (pixels, pixels)) for one in things]
    expected = to_picture(lay(scene, large))
    difference = np.abs(np.asarray(image(whole), float) - np.asarray(expected, float))
    assert whole.images[0].seed == 5
    assert np.quantile(difference, 0.99) <= 3
    recipe = json.loads(image(whole).info["avocat"])
    assert (recipe["prompt"], recipe["compose"], recipe["seed"]) == (AVOCADO, True, 5)


def test_its_bytes_are_the_same_alone_and_among_strangers(jobs: Any, start_worker: Start) -> None:
    start_worker(slots=5)
    alone = jobs.ended(jobs.submit(seed=7, **SCENE)).images[0].sha256
    strangers = [jobs.submit(steps=4 + i, guidance_scale=i / 2) for i in range(9)]
    together = jobs.ended(jobs.submit(seed=6, n=2, **SCENE))
    assert together.images[1].sha256 == alone
    assert together.images[0].sha256 != alone
    assert (together.step, together.total_steps) == (8, 8)
    assert all(jobs.ended(job).status is JobStatus.SUCCEEDED for job in strangers)


def test_best_of_and_more_rows_than_slots(jobs: Any, start_worker: Start) -> None:
    start_worker(slots=2)
    three = {"scene": read_scene("a cat, a dog and a bird")}
    kept = jobs.ended(jobs.submit(seed=3, n=2, best_of=8, **SCENE | three))
    assert len(kept.images) == 2
    assert all(3 <= one.seed <= 10 for one in kept.images)
    assert kept.images[0].clip_score >= kept.images[1].clip_score


def test_previews_are_of_the_scene(
    jobs: Any, start_worker: Start, client: redis.Redis, image: Any
) -> None:
    start_worker()
    shown: list[dict[str, Any]] = []
    with client.pubsub(ignore_subscribe_messages=True) as pubsub:
        pubsub.subscribe(keys.EVENTS)
        pubsub.get_message(timeout=1)
        jobs.ended(jobs.submit(seed=5, n=2, previews=2, **SCENE))

        def heard() -> bool:
            while message := pubsub.get_message(timeout=0.05):
                event = json.loads(message["data"])
                shown.extend([event] if event["kind"] == "preview" else [])
            return len(shown) == 4

        wait_for(heard)
    assert sorted((one["index"], one["step"]) for one in shown) == [(0, 3), (0, 6), (1, 3), (1, 6)]
    data = base64.b64decode(shown[0]["data_url"].partition(",")[2])
    assert Image.open(io.BytesIO(data)).size == (16, 16)


def test_a_layer_that_breaks_fails_the_job(
    jobs: Any, start_worker: Start, shared_bundle: Bundle
) -> None:
    start_worker(broken_for(shared_bundle, "an avocado"))
    broken, sound = jobs.submit(seed=5, **SCENE), jobs.submit(seed=5)
    assert jobs.ended(broken).status is JobStatus.FAILED
    assert jobs.ended(sound).status is JobStatus.SUCCEEDED


def test_a_scene_that_cannot_be_laid_fails_its_job_alone(jobs: Any, start_worker: Start) -> None:
    start_worker()
    wrong = Scene(relation="inside", parts=("a cat",))
    broken, sound = jobs.submit(**SCENE | {"scene": wrong}), jobs.submit(seed=5)
    record = jobs.ended(broken)
    assert record.status is JobStatus.FAILED
    assert jobs.ended(sound).status is JobStatus.SUCCEEDED


def test_the_card_and_the_fingerprint_know_of_scenes(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    composing = load_bundle(build_tiny_bundle(tmp_path / "composing", composes=True))
    whole = load_bundle(build_tiny_bundle(tmp_path / "whole"))
    assert composing.config.composes
    assert not whole.config.composes
    assert fingerprint(composing, 2, "eager 1") != fingerprint(whole, 2, "eager 1")


def test_a_worker_announces_that_its_model_composes(
    tmp_path: Path, start_worker: Start, client: redis.Redis
) -> None:
    start_worker(load_bundle(build_tiny_bundle(tmp_path / "composing", composes=True)))
    card = wait_for(lambda: client.hget(keys.MODELS, "tiny"))
    assert ModelCard.model_validate_json(card).composes
