"""`GET /v1/models`."""

from app import keys
from tests.app.service import CARD, Service


async def test_list_form_with_what_a_client_needs(service: Service) -> None:
    answer = (await service.client.get("/v1/models")).json()
    [model] = answer["data"]
    assert (answer["object"], model.pop("id")) == ("list", "tiny")
    assert (model.pop("object"), model.pop("owned_by")) == ("model", "avocat")
    assert isinstance(model.pop("created"), int)
    assert model.pop("native_size") == "16x16"
    told = CARD.model_dump(mode="json", exclude={"name", "native_size", "created_at"})
    assert model == told | {"loaded": False}


async def test_one_model(service: Service) -> None:
    answer = await service.client.get("/v1/models/tiny")
    assert (answer.status_code, answer.json()["id"]) == (200, "tiny")


async def test_no_models_yet(service: Service) -> None:
    service.redis.delete(keys.MODELS)
    assert (await service.client.get("/v1/models")).json() == {"object": "list", "data": []}


async def test_the_marked_model_is_the_default(service: Service) -> None:
    other = CARD.model_copy(update={"name": "another", "is_default": False})
    service.redis.hset(keys.MODELS, "another", other.model_dump_json())
    models = (await service.client.get("/v1/models")).json()["data"]
    assert [(model["id"], model["is_default"]) for model in models] == [
        ("another", False),
        ("tiny", True),
    ]
    assert (await service.submit())["request"]["model"] == "tiny"
    assert (await service.submit(model="another"))["request"]["model"] == "another"


async def test_a_card_not_understood_hides_no_other(service: Service) -> None:
    service.redis.hset(keys.MODELS, "odd", "{}")
    models = (await service.client.get("/v1/models")).json()["data"]
    assert [model["id"] for model in models] == ["tiny"]
