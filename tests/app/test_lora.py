"""LoRAs and free sizes of a model, as jobs may ask for them."""

import asyncio
from typing import Any

import pytest

from app import keys
from app.jobs.models import FreeSizes, LoraCard
from app.jobs.recipe import Recipe
from app.jobs.record import JobRequest, LoraUse
from app.jobs.repeats import repeat_key
from tests.app.service import CARD, Service
from tests.app.test_inputs import file_of
from tests.app.test_openai import drawn
from tests.app.test_verify import png_of, recipe, verified

SKETCH, OIL = "5c" * 32, "01" * 32
WRONG = "LoRA 'xl' is made for another architecture: it updates a by 4x8, and that is 4x9"
CAPABLE = CARD.model_copy(
    update={
        "loras": (
            LoraCard(name="oil", sha256=OIL),
            LoraCard(name="sketch", sha256=SKETCH),
            LoraCard(name="xl", sha256="77" * 32, fault=WRONG),
        ),
        "free_sizes": FreeSizes(
            multiple_of=8, smallest_side=16, largest_side=64, most_pixels=48 * 48
        ),
    }
)


@pytest.fixture
def capable(service: Service) -> Service:
    service.redis.hset(keys.MODELS, CAPABLE.name, CAPABLE.model_dump_json())
    return service


async def test_the_request_holds_the_hash_of_the_file(capable: Service) -> None:
    job = await capable.submit(lora=[{"name": "sketch", "weight": 0.5}, {"name": "oil"}])
    assert job["request"]["lora"] == [
        {"name": "sketch", "weight": 0.5, "sha256": SKETCH},
        {"name": "oil", "weight": 1.0, "sha256": OIL},
    ]
    assert (await capable.client.get("/v1/models/tiny")).json()["loras"][1]["name"] == "sketch"


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ([{"name": "none"}], "'none' should be one of oil, sketch"),
        ([{"name": "xl"}], WRONG),
        ([{"name": "oil"}, {"name": "oil"}], "'oil' is named twice"),
        ([{"name": "oil", "weight": 5}], "less than or equal to 4"),
        ([{"name": "oil", "scale": 1}], "No such field"),
        ("oil", "Should be an array"),
        ([{"name": "oil"}] * 5, "at most 4 items"),
    ],
)
async def test_what_is_wrong_is_said(capable: Service, lora: Any, message: str) -> None:
    answer = await capable.client.post("/v1/jobs", json={"prompt": "x", "lora": lora})
    assert answer.status_code == 422
    [error] = answer.json()["errors"]
    assert error["pointer"].startswith("/lora")
    assert message in error["message"]


@pytest.mark.parametrize(
    ("runtime", "message"),
    [("eager", "'tiny' has no LoRAs"), ("", "what suits 'tiny' is found when it is loaded")],
)
async def test_models_without_say_so(service: Service, runtime: str, message: str) -> None:
    card = CARD.model_copy(update={"runtime": runtime})
    service.redis.hset(keys.MODELS, CARD.name, card.model_dump_json())
    answer = await service.client.post("/v1/jobs", json={"prompt": "x", "lora": [{"name": "oil"}]})
    [error] = answer.json()["errors"]
    assert message in error["message"]


async def test_a_form_has_them_as_json(capable: Service) -> None:
    def post(text: str) -> Any:
        files = {"image": ("a.png", file_of(), "image/png")}
        form = {"prompt": "x", "lora": text}
        return capable.client.post("/v1/images/edits", data=form, files=files)

    answer, job = await asyncio.gather(post('[{"name": "oil"}]'), drawn(capable))
    assert answer.status_code == 200
    request = (await capable.job(job))["request"]
    assert request["lora"] == [{"name": "oil", "weight": 1.0, "sha256": OIL}]
    for wrong in ("oil", "[" * 5000, '{"name": "oil"}'):
        assert (await post(wrong)).status_code == 422


async def test_a_repeat_has_the_same_loras(capable: Service) -> None:
    def key(**changes: Any) -> str:
        job = {"prompt": "x", "model": "tiny", "seed": 1, "steps": 2, "sampler": "ddim",
               "guidance_scale": 1, "size": "16x16", "background": "white", **changes}  # fmt: skip
        return repeat_key("o", JobRequest.model_validate(job), "f")

    use = {"name": "oil", "weight": 1.0, "sha256": OIL}
    uses: list[list[dict[str, Any]]] = [
        [], [use], [{**use, "weight": 0.9}], [{**use, "sha256": SKETCH}]
    ]  # fmt: skip
    assert len({key(lora=one) for one in uses}) == len(uses)


async def test_the_recipe_names_them(capable: Service) -> None:
    request = {"prompt": "x", "seed": 1, "lora": [{"name": "oil", "weight": 0.25}]}
    job = await capable.submit(**request)
    record = capable.store.get(job["id"])
    assert record is not None
    recipe = Recipe.of(record.request, 1, CAPABLE)
    assert Recipe.read(recipe.as_json()) == recipe
    assert recipe.lora[0].sha256 == OIL
    assert 'Lora hashes: "oil: 010101010101", Lora weights: "oil: 0.25"' in recipe.as_parameters()
    plain = Recipe.of(record.request.model_copy(update={"lora": ()}), 1, CAPABLE)
    assert "lora" not in plain.as_json()  # files of before are the same bytes
    assert plain.as_parameters() == recipe.as_parameters().replace(
        'Lora hashes: "oil: 010101010101", Lora weights: "oil: 0.25", ', ""
    )


async def test_a_picture_is_drawn_again_with_its_loras(capable: Service) -> None:
    made = recipe(lora=(LoraUse(name="oil", weight=0.5, sha256=OIL),))
    answer = await verified(capable, png_of(made), redrawn=png_of(made))
    assert answer["verdict"] == "identical"
    record = capable.store.get(answer["job_id"])
    assert record is not None
    assert record.request.lora == made.lora
    # The file of that name is another now.
    claimed = recipe(lora=(LoraUse(name="oil", weight=0.5, sha256=SKETCH),))
    answer = await verified(capable, png_of(claimed), redrawn=png_of(made))
    assert (answer["verdict"], "lora" in answer["reason"]) == ("unverifiable", True)


@pytest.mark.parametrize("size", ["24x40", "64x16", "48x48", "32x32"])
async def test_sizes_within_bounds_are_taken(capable: Service, size: str) -> None:
    assert (await capable.submit(size=size))["request"]["size"] == size


@pytest.mark.parametrize("size", ["20x24", "72x16", "8x16", "56x48"])
async def test_others_are_refused_with_the_bounds(capable: Service, size: str) -> None:
    answer = await capable.client.post("/v1/jobs", json={"prompt": "x", "size": size})
    [error] = answer.json()["errors"]
    assert error["message"] == (
        f"'{size}' should be one of 16x16, 32x32, or of sides that are multiples of 8 from 16 to "
        "64, together at most 2304 pixels"
    )
