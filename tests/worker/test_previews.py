"""Previews show the way, and leave no trace on what comes of it."""

import base64
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
import torch
from PIL import Image

from app import keys
from app.settings import Settings
from models.bundle import Bundle
from tests.worker.conftest import wait_for
from tests.worker.parts import broken_for, slowed
from tests.worker.test_engine import drain, spec
from worker.engine import Engine


@pytest.fixture
def heard(client: redis.Redis) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """The previews published so far."""
    with client.pubsub(ignore_subscribe_messages=True) as pubsub:
        pubsub.subscribe(keys.EVENTS)
        pubsub.get_message(timeout=1)
        found: list[dict[str, Any]] = []

        def previews() -> list[dict[str, Any]]:
            while message := pubsub.get_message(timeout=0.05):
                event = json.loads(message["data"])
                if event["kind"] == "preview":
                    found.append(event)
            return found

        yield previews


@pytest.mark.parametrize(
    ("steps", "count", "shown_at"),
    [(10, 0, []), (10, 1, [5]), (8, 3, [2, 4, 6]), (10, 3, [3, 5, 8]), (3, 9, [1, 2]), (1, 2, [])],
)
def test_snapshots_are_spread_evenly(
    shared_bundle: Bundle, steps: int, count: int, shown_at: list[int]
) -> None:
    engine = Engine(shared_bundle, slots=2, micro_batch=2)
    engine.admit([spec(shared_bundle, "job", steps=steps), spec(shared_bundle, "other", steps=4)])
    engine.preview("job", count)
    snapshots = []
    while not engine.idle:
        snapshots += engine.step().snapshots
    assert [(one.job, one.step) for one in snapshots] == [("job", step) for step in shown_at]
    assert all(one.denoised.shape == (4, 16, 16) for one in snapshots)


def test_a_broken_row_is_not_shown(shared_bundle: Bundle) -> None:
    engine = Engine(broken_for(shared_bundle, "a red apple"), slots=1, micro_batch=2)
    engine.admit([spec(shared_bundle, "job", steps=2)])
    engine.preview("job", 1)
    report = engine.step()
    assert report.faults
    assert not report.snapshots


def test_a_watched_row_draws_the_same_picture(shared_bundle: Bundle) -> None:
    rows = [spec(shared_bundle, name, sampler=name) for name in ("ddpm", "ddim", "dpmpp_2m")]
    pictures = []
    for count in (0, 3):
        engine = Engine(shared_bundle, slots=3, micro_batch=2)
        engine.admit(rows)
        for row in rows:
            engine.preview(row.job, count)
        pictures.append(drain(engine))
    unwatched, watched = pictures
    assert all(torch.equal(unwatched[row], watched[row]) for row in unwatched)


def test_previews_wanted_at_submission_come_from_the_first_step(
    jobs: Any,
    start_worker: Callable[..., Any],
    settings: Settings,
    heard: Callable[[], list[dict[str, Any]]],
) -> None:
    start_worker()
    wish = {"seed": 5, "n": 2, "steps": 4, "output_format": "webp", "background": "white"}
    plain, watched = (jobs.ended(jobs.submit(previews=count, **wish)) for count in (0, 3))
    assert [one.sha256 for one in plain.images] == [one.sha256 for one in watched.images]
    previews = wait_for(lambda: len(heard()) == 6 and heard())
    assert Counter((one["index"], one["step"]) for one in previews) == Counter(
        (index, step) for index in (0, 1) for step in (1, 2, 3)
    )
    assert {(one["job_id"], one["attempt"]) for one in previews} == {(watched.id, 1)}
    for one in previews:
        header, _, data = one["data_url"].partition(",")
        shown = Image.open(io.BytesIO(base64.b64decode(data)))
        assert header == "data:image/webp;base64"
        assert (shown.format, shown.mode, shown.size) == ("WEBP", "RGB", (16, 16))


def test_a_wish_reaches_a_running_job(
    jobs: Any,
    start_worker: Callable[..., Any],
    shared_bundle: Bundle,
    client: redis.Redis,
    heard: Callable[[], list[dict[str, Any]]],
) -> None:
    start_worker(slowed(shared_bundle, 0.005))
    job = jobs.submit(steps=900, best_of=2)
    jobs.running(job)
    assert heard() == []
    client.hset(keys.job(job), "previews", "20")
    first = wait_for(lambda: heard() and heard()[0])
    assert (first["job_id"], first["index"]) == (job, 0)
    jobs.cancel(job)
    jobs.ended(job)
