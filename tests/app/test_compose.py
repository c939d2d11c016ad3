"""Prompts of several things: what the API makes of them, from the request to the recipe."""

import json
from pathlib import Path
from typing import Any

import pytest

from app import keys
from app.jobs.recipe import Recipe
from app.jobs.record import FORMAT, JobRequest
from app.jobs.repeats import repeat_key
from app.jobs.scene import read_scene
from tests.app.service import CARD, Service
from tests.app.test_inputs import data_url, file_of
from tests.app.test_verify import png_of, recipe, verified

COMPOSES = CARD.model_copy(update={"composes": True})
AVOCADO = "a cat inside an avocado"


@pytest.fixture
def composing(service: Service) -> Service:
    service.redis.hset(keys.MODELS, COMPOSES.name, COMPOSES.model_dump_json())
    return service


def request_of(service: Service, job: Any) -> JobRequest:
    record = service.store.get(job["id"])
    assert record is not None
    return record.request


async def test_things_are_painted_one_by_one_where_the_model_does(composing: Service) -> None:
    job = await composing.submit(prompt=AVOCADO, n=2, best_of=3)
    assert job["request"]["compose"] is True
    assert job["request"]["scene"] == {"relation": "inside", "parts": ["a cat", "an avocado"]}
    request = request_of(composing, job)
    assert (request.pictures, request.rows) == (3, 6)
    assert (await composing.client.get("/v1/models/tiny")).json()["composes"] is True


@pytest.mark.parametrize(
    ("asked", "compose"),
    [
        ({"prompt": AVOCADO, "compose": False}, False),
        ({"prompt": "a red apple"}, True),
        ({"prompt": "a red apple", "compose": True}, True),
        ({"prompt": AVOCADO, "init_image": data_url(file_of())}, False),
    ],
)
async def test_what_is_painted_whole(
    composing: Service, asked: dict[str, Any], *, compose: bool
) -> None:
    job = await composing.submit(**asked)
    assert (job["request"]["compose"], job["request"]["scene"]) == (compose, None)
    assert request_of(composing, job).rows == 1


async def test_other_models_paint_every_prompt_whole(service: Service) -> None:
    job = await service.submit(prompt=AVOCADO)
    assert job["request"]["scene"] is None
    refused = await service.client.post("/v1/jobs", json={"prompt": AVOCADO, "compose": True})
    assert refused.status_code == 422
    [error] = refused.json()["errors"]
    assert error["pointer"] == "/compose"
    assert error["message"] == "The model 'tiny' paints every prompt whole"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"compose": "yes"}, "valid boolean"),
        ({"compose": 1}, "valid boolean"),
        ({"compose": True, "init_image": data_url(file_of())}, "starts from a picture"),
    ],
)
async def test_what_compose_may_not_be(
    composing: Service, asked: dict[str, Any], message: str
) -> None:
    refused = await composing.client.post("/v1/jobs", json={"prompt": AVOCADO, **asked})
    assert refused.status_code == 422
    [error] = refused.json()["errors"]
    assert error["pointer"] == "/compose"
    assert message in error["message"]


async def test_openais_route_composes_and_its_forms_have_no_such_part(composing: Service) -> None:
    path = "/v1/images/edits"
    form = {"prompt": AVOCADO, "compose": "true"}
    refused = await composing.client.post(path, data=form, files={"image": file_of()})
    assert refused.status_code == 422
    assert "compose" in refused.json()["error"]["message"]


async def test_workers_of_the_release_before_leave_it_alone(composing: Service) -> None:
    """They would paint it whole."""
    whole, composed = await composing.submit(), await composing.submit(prompt=AVOCADO)
    formats = [composing.redis.hget(keys.job(job["id"]), "format") for job in (whole, composed)]
    assert formats == [b"1", b"3"]
    assert FORMAT == 3


async def test_it_takes_as_long_as_its_layers(composing: Service) -> None:
    whole = request_of(composing, await composing.submit(prompt=AVOCADO, compose=False))
    composed = request_of(composing, await composing.submit(prompt=AVOCADO))
    assert composed.rows * composed.forwards == 2 * whole.rows * whole.forwards
    keys_of = [repeat_key("", one, "print") for one in (whole, composed)]
    assert keys_of[0] != keys_of[1]


def test_the_recipe_says_so(tmp_path: Path) -> None:
    composed = recipe(prompt=AVOCADO, compose=True, scene=read_scene(AVOCADO))
    assert Recipe.read(composed.as_json()) == composed
    assert '"compose":true' in composed.as_json()
    assert '"scene":{"relation":"inside","parts":["a cat","an avocado"]}' in composed.as_json()
    assert not {"compose", "scene"} & set(
        json.loads(recipe().as_json())
    )  # files of before are the same bytes


@pytest.mark.parametrize("compose", [True, False])
async def test_a_picture_is_drawn_again_as_it_was(composing: Service, *, compose: bool) -> None:
    made = recipe(prompt=AVOCADO, compose=compose, scene=read_scene(AVOCADO) if compose else None)
    answer = await verified(composing, png_of(made), redrawn=png_of(made))
    assert answer["verdict"] == "identical"
    record = composing.store.get(answer["job_id"])
    assert record is not None
    assert (record.request.scene == made.scene, record.request.compose) == (True, compose)
