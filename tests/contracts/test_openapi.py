"""The OpenAPI document agrees with the routes and with the wire contract."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from pydantic import BaseModel

from app import keys
from app.examples import EXAMPLES
from app.main import create_app
from app.routes import health
from app.schemas import jobs, models, openai, problems, verification
from app.settings import Settings
from tests.app.service import CARD, serving

OPENAI = "/v1/images/generations"
EDITS = {"/v1/images/edits", "/v1/images/variations"}
ROUTES = {
    ("get", "/healthz"),
    ("get", "/readyz"),
    ("post", "/v1/jobs"),
    ("get", "/v1/jobs"),
    ("get", "/v1/jobs/{job_id}"),
    ("delete", "/v1/jobs/{job_id}"),
    ("post", "/v1/jobs/{job_id}/cancel"),
    ("get", "/v1/jobs/{job_id}/events"),
    ("get", "/v1/images/{name}"),
    ("post", OPENAI),
    *(("post", path) for path in EDITS),
    ("post", "/v1/verify"),
    ("get", "/metrics"),
    ("get", "/v1/models"),
    ("get", "/v1/models/{name}"),
    ("post", "/v1/models/{name}/load"),
    ("post", "/v1/models/{name}/unload"),
    ("get", "/v1/workers"),
}
NOT_JSON = {
    ("get", "/v1/images/{name}"),
    ("get", "/v1/jobs/{job_id}/events"),
    ("get", "/metrics"),
}
# Every field of the contract's table.
FIELDS = [
    *("prompt", "negative_prompt", "model", "n", "seed", "steps", "sampler", "guidance_scale"),
    *("size", "output_format", "background", "priority", "webhook_url", "guidance_interval"),
    *("best_of", "lora", "cache", "metadata", "init_image", "mask", "strength", "compose"),
]


@pytest.fixture(scope="module")
def document() -> Any:
    return create_app(Settings()).openapi()


def operations(document: Any) -> list[tuple[str, str, Any]]:
    return [
        (method, path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


def test_it_is_openapi_3_1_and_whole(document: Any) -> None:
    assert document["openapi"] == "3.1.0"
    assert {(method, path) for method, path, _ in operations(document)} == ROUTES
    ids = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(ids)) == len(ids)
    text = json.dumps(document)
    assert text.count("#/components/schemas/HTTPValidationError") == 0
    for name in set(text.split("#/components/schemas/")[1:]):
        assert name.partition('"')[0] in document["components"]["schemas"]


def test_every_route_documents_its_problems(document: Any) -> None:
    for method, path, operation in operations(document):
        responses = operation["responses"]
        assert operation["summary"], path
        assert all("X-Request-Id" in response["headers"] for response in responses.values())
        if not path.startswith("/v1/"):
            continue
        assert {"401", "500", "503"} <= set(responses), (method, path)
        for status, response in responses.items():
            if status >= "400":
                form = (
                    "application/json" if path in {OPENAI, *EDITS} else "application/problem+json"
                )
                assert list(response["content"]) == [form], (path, status)


SCHEMAS: list[type[BaseModel]] = [
    *(jobs.JobObject, jobs.JobList, models.ModelObject, models.ModelList, openai.Images),
    *(openai.ErrorAnswer, verification.Verification, problems.ProblemDetails),
    *(health.Health, health.Readiness),
    *(models.ModelMove, models.ModelPlaces, models.PlaceObject),
    *(models.WorkerList, models.WorkerObject),
]


def test_every_answer_has_an_example_of_its_schema(document: Any) -> None:
    shown = {name for name, schema in document["components"]["schemas"].items()
             if "examples" in schema}  # fmt: skip
    assert {schema.__name__ for schema in SCHEMAS} == set(EXAMPLES)
    for schema in SCHEMAS:
        [example] = document["components"]["schemas"][schema.__name__]["examples"]
        again = schema.model_validate(example).model_dump(mode="json", by_alias=True)
        assert set(again) == set(example)
    for method, path, operation in operations(document):
        for status, response in operation["responses"].items():
            for media_type, content in response.get("content", {}).items():
                reference = content.get("schema", {}).get("$ref", "").rpartition("/")[2]
                if "json" in media_type:
                    assert reference in shown, (method, path, status)
        body = operation.get("requestBody", {}).get("content", {}).get("application/json")
        assert body is None or body["schema"]["$ref"].rpartition("/")[2] in shown
    stream = document["paths"]["/v1/jobs/{job_id}/events"]["get"]["responses"]["200"]["content"]
    assert stream["text/event-stream"]["example"].startswith("event: status\n")


def test_submission_documents_every_row_of_the_error_table(document: Any) -> None:
    responses = document["paths"]["/v1/jobs"]["post"]["responses"]
    rows = {"400", "401", "403", "404", "413", "415", "422", "429", "500", "503"}
    assert set(responses) == {"200", "202"} | rows
    for status in ("429", "503"):
        assert "Retry-After" in responses[status]["headers"]
    assert {"Location", "Preference-Applied", "Retry-After"} <= set(responses["202"]["headers"])


def test_the_body_has_the_fields_of_the_contract(document: Any) -> None:
    schema = document["components"]["schemas"]["JobCreate"]
    assert list(schema["properties"]) == FIELDS
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["prompt"]
    body = document["paths"]["/v1/jobs"]["post"]["requestBody"]
    assert body["content"]["application/json"]["schema"]["$ref"].endswith("/JobCreate")


def test_security_follows_the_settings(document: Any) -> None:
    closed = create_app(Settings(api_keys="ann:secret")).openapi()  # type: ignore[arg-type]
    assert document["paths"]["/v1/models"]["get"]["security"] == [{}, {"key": []}]
    assert closed["paths"]["/v1/models"]["get"]["security"] == [{"key": []}]
    assert "security" not in closed["paths"]["/healthz"]["get"]
    assert "secret" not in json.dumps(closed)


def check(document: Any, answer: httpx.Response, path: str) -> None:
    """The status, media type and members of an answer are documented."""
    method = answer.request.method.lower()
    response = document["paths"][path][method]["responses"][str(answer.status_code)]
    [(media_type, content)] = list(response["content"].items())[:1]
    assert answer.headers["content-type"] == media_type
    schema = document["components"]["schemas"][content["schema"]["$ref"].rpartition("/")[2]]
    assert set(schema.get("required", ())) <= set(answer.json())
    if schema.get("additionalProperties") is not True:
        assert set(answer.json()) <= set(schema["properties"])


async def test_answers_are_as_documented(redis_url: str, tmp_path: Path, document: Any) -> None:
    async with serving(redis_url, tmp_path)() as service:
        job = await service.submit()
        service.draw(job["id"])
        client = service.client
        for method, path in sorted(ROUTES - NOT_JSON):
            for job_id, name in ((job["id"], "tiny"), ("x", "x")):
                target = path.format(job_id=job_id, name=name)
                body = {"json": {"prompt": "x"}} if (method, path) == ("post", "/v1/jobs") else {}
                check(document, await client.request(method, target, **body), path)
        for path in ("/v1/models/{name}/load", "/v1/models/{name}/unload"):
            for body in ({}, {"worker": 7}):
                check(document, await client.post(path.format(name="tiny"), json=body), path)
        check(document, await client.post("/v1/jobs", json={}), "/v1/jobs")
        check(document, await client.post("/v1/jobs", content=b"{"), "/v1/jobs")
        check(document, await client.get("/v1/jobs?limit=0"), "/v1/jobs")


def test_cards_round_trip(redis_url: str) -> None:
    """What workers announce is what the API reads."""
    with redis.Redis.from_url(redis_url) as connection:
        connection.hset(keys.MODELS, CARD.name, CARD.model_dump_json())
        raw = connection.hget(keys.MODELS, CARD.name)
    assert isinstance(raw, bytes)
    assert type(CARD).model_validate_json(raw) == CARD
