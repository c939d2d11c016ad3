"""LoRAs through a worker's process: announced, drawn with, in the recipe, and gone when they go."""

import json
import shutil
from collections.abc import Callable
from io import BytesIO
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import redis
import torch
from PIL import Image

from app import keys
from app.jobs.models import ModelCard
from app.jobs.record import JobRecord, JobStatus
from app.settings import Settings
from app.storage.folder import FolderStorage
from models.loading import load_model
from models.pictures import to_picture
from models.stable_diffusion.loading import import_folder
from tests.models.lora_files import save_kohya, save_peft
from tests.models.tiny_diffusers import build_pipeline, reference
from tests.worker.conftest import Jobs, wait_for
from tests.worker.test_engine import drain
from tests.worker.test_imported import row
from worker.engine import Engine

pytestmark = pytest.mark.filterwarnings("ignore")
LONG_S = 300.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An imported model, and two LoRAs beside it."""
    source = build_pipeline(tmp_path / "sd1", "sd1")
    import_folder(source, tmp_path / "m", "mine")
    (tmp_path / "l").mkdir()
    pipeline = reference(source)
    save_kohya(tmp_path / "l" / "oil.safetensors", pipeline, seed=1)
    save_peft(tmp_path / "l" / "sketch.safetensors", pipeline, seed=2)
    return tmp_path


def _card(client: redis.Redis) -> ModelCard | None:
    raw = client.hget(keys.MODELS, "mine")
    return ModelCard.model_validate_json(raw) if raw is not None else None


def _names(client: redis.Redis) -> dict[str, str]:
    card = _card(client)
    return {one.name: one.sha256 for one in card.loras} if card is not None else {}


def test_jobs_are_drawn_with_what_they_name(
    folder: Path,
    client: redis.Redis,
    jobs: Jobs,
    settings: Settings,
    spawn_worker: Callable[..., BaseProcess],
) -> None:
    spawn_worker(bundle=folder / "m", lora_dir=folder / "l")
    wait_for(lambda: len(_names(client)) == 2, LONG_S)
    known = _names(client)
    uses: dict[str, list[tuple[str, float]]] = {
        "none": [], "oil": [("oil", 0.8)], "both": [("oil", 0.5), ("sketch", 1.0)],
    }  # fmt: skip
    asked = {
        job: [{"name": name, "weight": weight, "sha256": known[name]} for name, weight in use]
        for job, use in uses.items()
    }
    common = {"model": "mine", "size": "64x64", "steps": 3, "seed": 3, "background": "white"}
    sent = {job: jobs.submit(lora=lora, **common) for job, lora in asked.items()}
    ended = {job: jobs.ended(job_id, LONG_S) for job, job_id in sent.items()}
    pictures = {job: _picture(settings, record) for job, record in ended.items()}
    expected = _expected(folder, asked)
    for job, picture in pictures.items():
        assert picture.tobytes() == expected[job].tobytes(), job
        recipe = json.loads(picture.info["avocat"])
        assert recipe.get("lora", []) == asked[job]
    assert len({picture.tobytes() for picture in pictures.values()}) == 3
    # The operator takes one away and puts another in its place.
    (folder / "l" / "oil.safetensors").unlink()
    shutil.copy(folder / "l" / "sketch.safetensors", folder / "l" / "new.safetensors")
    wait_for(lambda: set(_names(client)) == {"sketch", "new"}, LONG_S)
    gone = {"name": "oil", "weight": 1.0, "sha256": "00" * 32}
    failed = jobs.ended(jobs.submit(lora=[gone], **common), LONG_S)
    assert failed.status is JobStatus.FAILED
    assert failed.error is not None
    assert "LoRA 'oil' is gone" in failed.error.detail


def _picture(settings: Settings, record: JobRecord) -> Image.Image:
    assert record.status is JobStatus.SUCCEEDED, record.error
    picture = Image.open(BytesIO(FolderStorage(settings.images_dir).read(record.images[0].name)))
    picture.load()
    return picture


def _expected(folder: Path, asked: dict[str, list[dict[str, Any]]]) -> dict[str, Image.Image]:
    """What the engine draws in this process."""
    torch.set_num_threads(1)
    model = load_model(folder / "m")
    loras = model.lora_folder(folder / "l")
    assert loras is not None
    specs = []
    for job, use in asked.items():
        wanted = [(one["name"], one["weight"], one["sha256"]) for one in use]
        common = {"prompt": "a red apple", "negative": None, "scale": 3.0, "steps": 3}
        specs.append(row(model, job, adapters=loras.adapters(wanted), **common))
    engine = Engine(model, slots=len(specs), micro_batch=2)
    engine.admit(specs)
    found = {name.split("/")[0]: x for name, x in drain(engine).items()}
    return {job: to_picture(model.develop(x, (64, 64))) for job, x in found.items()}
