"""A better runtime is built beside the work: jobs end on the one they began on."""

import fcntl
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from app.jobs.models import ModelCard
from app.jobs.recipe import Recipe
from app.settings import Settings
from app.storage.folder import FolderStorage
from models.bundle import Bundle
from models.model import Model, Size
from tests.worker.conftest import wait_for
from tests.worker.parts import slowed, with_denoiser
from tests.worker.test_engine import alone, drain, random_spec
from tests.worker.test_runtimes import offer
from worker.background import Background
from worker.card import model_card
from worker.engine import Engine
from worker.start import _later, _Shop
from worker.streams import Streams

Start = Callable[..., Any]
_CALLS = Streams(1, torch.get_num_threads())


def other(bundle: Bundle) -> Bundle:
    """A runtime that gives other last bits."""
    return with_denoiser(bundle, lambda denoise: lambda *given: denoise(*given) * (1 + 1e-5))


def test_rows_end_as_they_began(shared_bundle: Bundle) -> None:
    dice, late = random.Random(3), other(shared_bundle)
    specs = [random_spec(shared_bundle, str(i), dice) for i in range(12)]
    engine = Engine(shared_bundle, slots=4, micro_batch=2)
    engine.admit(specs[:6])  # two of them still wait for a slot
    pictures: dict[str, Tensor] = {}
    for _ in range(2):
        pictures |= {f"{one.job}/0": one.picture for one in engine.step().finished}
    engine.switch(late)
    engine.admit(specs[6:])
    pictures |= drain(engine)
    for i, one in enumerate(specs):
        drawn_by = shared_bundle if i < 6 else late
        assert torch.equal(pictures[f"{one.job}/0"], alone(drawn_by, one, 2))


def _runtime(worker: Any) -> str:
    [resident] = worker.runner._roster.residents.values()
    return str(resident.card.runtime)


def _fingerprint(settings: Settings, name: str) -> str:
    picture = Image.open(BytesIO(FolderStorage(settings.images_dir).read(name)))
    text = picture.text["avocat"]  # type: ignore[attr-defined]
    return Recipe.model_validate_json(text).fingerprint


Switch = Callable[[Bundle, ModelCard], str]


@pytest.fixture
def switched(jobs: Any, start_worker: Start, shared_bundle: Bundle) -> Switch:
    """Has a worker change to another runtime while it draws a job; which job that is."""

    def switch(late: Bundle, card: ModelCard) -> str:
        built = threading.Event()

        def build() -> tuple[Model, ModelCard]:
            assert built.wait(60)
            return late, card

        worker = start_worker(slowed(shared_bundle, 0.05), background=Background(build))
        first: str = jobs.submit(steps=40, seed=1)
        jobs.running(first)
        built.set()
        wait_for(lambda: _runtime(worker) == card.runtime)
        return first

    return switch


def test_a_worker_serves_before_its_runtime_is_built(
    jobs: Any, switched: Switch, settings: Settings, shared_bundle: Bundle
) -> None:
    late = other(shared_bundle)
    card = model_card(late, settings.micro_batch, "other 1")
    first = switched(late, card)
    second = jobs.submit(steps=6, seed=1)
    prints = [_fingerprint(settings, jobs.ended(job).images[0].name) for job in (first, second)]
    usual = model_card(shared_bundle, settings.micro_batch, "eager 1")
    assert prints == [usual.fingerprint, card.fingerprint]


class Blank(Bundle):
    """A runtime that makes nothing of what was drawn."""

    def develop(self, x: Tensor, size: Size) -> Tensor:
        return torch.full_like(x, -1.0)


def test_what_is_drawn_with_a_runtime_is_developed_by_it(
    jobs: Any, switched: Switch, settings: Settings, shared_bundle: Bundle
) -> None:
    parts = {one.name: getattr(shared_bundle, one.name) for one in fields(shared_bundle)}
    late = Blank(**parts)
    first = switched(late, model_card(late, settings.micro_batch, "blank 1"))
    names = [jobs.ended(job).images[0].name for job in (first, jobs.submit(steps=2, seed=1))]
    storage = FolderStorage(settings.images_dir)
    shown = [Image.open(BytesIO(storage.read(name))).getbbox() for name in names]
    assert [box is None for box in shown] == [False, True]


def test_what_cannot_be_built_disturbs_nobody(jobs: Any, start_worker: Start) -> None:
    def build() -> tuple[Model, ModelCard]:
        raise ValueError("no such thing")

    worker = start_worker(background=Background(build))
    assert jobs.ended(jobs.submit()).images
    assert _runtime(worker) == "eager 1"


@pytest.mark.parametrize(
    ("changes", "waits"),
    [
        ({"runtime": "auto"}, True),
        ({"runtime": "eager"}, False),
        ({"runtime": "compile"}, True),
        ({"runtime": "auto", "exact": False}, False),
    ],
)
def test_only_what_takes_long_is_built_later(
    shared_bundle: Bundle, settings: Settings, changes: dict[str, Any], waits: bool
) -> None:
    chosen = settings.model_copy(update=changes)
    assert (_later(shared_bundle, chosen, _CALLS) is not None) == waits


def test_a_worker_starts_while_another_one_builds(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kept runtime is taken, another one left to the background; neither waits for the lock."""
    offer(monkeypatch, 0.0)
    settings = settings.model_copy(update={"runtime": "auto", "micro_batch": 0})
    first = _Shop(settings, torch.device("cpu"), 1).prepare(settings.bundle, "")
    assert first.background is not None
    first.background._build()
    other_size = settings.model_copy(update={"micro_batch": 2})
    [lock] = settings.runtimes_dir.glob("*lock")
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        for chosen, later in ((settings, False), (other_size, True)):
            shop = _Shop(chosen, torch.device("cpu"), 1)
            started = ThreadPoolExecutor(1).submit(shop.prepare, settings.bundle, "")
            assert (started.result(30).background is not None) == later


def test_what_was_measured_before_is_there_at_once(
    shared_bundle: Bundle, settings: Settings, tmp_path: Path
) -> None:
    settings = settings.model_copy(update={"runtime": "auto", "micro_batch": 1})
    later = _later(shared_bundle, settings, _CALLS)
    assert later is not None
    model, card = later._build()
    assert isinstance(model, Bundle)
    assert card.forward_ms is not None
    assert card.difference is not None
    assert card.difference < (1e-3 if card.dtype == "float32" else 0.1)
    assert _later(shared_bundle, settings, _CALLS) is None
