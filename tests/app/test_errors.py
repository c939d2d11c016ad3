"""Every row of the contract's error table, as clients see it."""

import json
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.exceptions import ResponseError

from app.errors import PROBLEMS, ApiError
from tests.app.service import Serve, Service

JSON = {"content-type": "application/json"}


def problem(answer: httpx.Response, status: int, slug: str) -> Any:
    """The problem in an answer, after checking what all have."""
    details = answer.json()
    assert (answer.status_code, details["status"]) == (status, status), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert details["type"] == f"/problems/{slug}"
    assert details["instance"] == answer.headers["x-request-id"]
    assert details["title"]
    assert details["detail"]
    return details


def pointers(answer: httpx.Response) -> list[str]:
    """The wrong fields that a 422 names."""
    return sorted(error["pointer"] for error in problem(answer, 422, "invalid-request")["errors"])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"prompt=x",
        b'{"prompt": "x",}',
        b'{"prompt": NaN}',
        b'{"prompt": "x", "guidance_scale": -Infinity}',
        b'{"prompt": "x", "prompt": "y"}',
        b'{"prompt": "x", "metadata": {"a": "1", "a": "2"}}',
        b'{"prompt": "\xff"}',
        '{"prompt": "x"}'.encode("utf-16"),
        b"[" * 60000,
        b'{"a":' * 40 + b"1" + b"}" * 40,
        b'{"prompt": "a\nb"}',
    ],
)
async def test_400_not_json(service: Service, body: bytes) -> None:
    problem(
        await service.client.post("/v1/jobs", content=body, headers=JSON), 400, "malformed-json"
    )


async def test_401_without_a_known_key(serve: Serve) -> None:
    async with serve(api_keys="ann:secret") as service:
        for value in (None, "Bearer wrong", "Basic c2VjcmV0", "Bearer", "Bearer \xe9"):
            headers = {} if value is None else {"authorization": value.encode("latin-1")}
            for path in ("/v1/jobs", "/v1/models", "/v1/images/x.png", "/v1/jobs/x"):
                answer = await service.client.get(path, headers=headers)
                problem(answer, 401, "unauthorized")
                assert answer.headers["www-authenticate"] == "Bearer"
        good = await service.client.get("/v1/jobs", headers={"authorization": "bearer secret"})
        assert good.status_code == 200


async def test_401_comes_before_the_body_is_judged(serve: Serve) -> None:
    async with serve(api_keys="ann:secret") as service:
        problem(await service.client.post("/v1/jobs", content=b"{"), 401, "unauthorized")


async def test_403_high_priority_needs_a_key_for_it(serve: Serve) -> None:
    body = {"prompt": "x", "priority": "high"}
    async with serve(api_keys="ann:a,bob:b:high") as service:
        for secret, status in (("a", 403), ("b", 202)):
            headers = {"authorization": f"Bearer {secret}"}
            answer = await service.client.post("/v1/jobs", json=body, headers=headers)
            assert answer.status_code == status
    async with serve() as service:
        problem(await service.client.post("/v1/jobs", json=body), 403, "forbidden")


@pytest.mark.parametrize(
    ("path", "slug"),
    [
        ("/v1/jobs/01J00000000000000000000000", "job-not-found"),
        ("/v1/jobs/not-an-id", "job-not-found"),
        ("/v1/jobs/%00%ff", "job-not-found"),
        ("/v1/images/01J00000000000000000000000_e1_0.png", "image-not-found"),
        ("/v1/images/..%2f..%2fetc%2fpasswd", "not-found"),
        ("/v1/models/nope", "model-not-found"),
        ("/v1/nothing", "not-found"),
        ("/v1/jobs/", "not-found"),
        ("/docs/assets/nothing.js", "not-found"),
    ],
)
async def test_404(service: Service, path: str, slug: str) -> None:
    problem(await service.client.get(path), 404, slug)


async def test_404_unknown_model_names_the_known(service: Service) -> None:
    answer = await service.client.post("/v1/jobs", json={"prompt": "x", "model": "big"})
    details = problem(answer, 404, "model-not-found")
    assert "'big'" in details["detail"]
    assert "'tiny'" in details["detail"]


async def test_405_names_all_methods(service: Service) -> None:
    answer = await service.client.put("/v1/jobs", json={})
    problem(answer, 405, "method-not-allowed")
    assert answer.headers["allow"] == "GET, HEAD, POST"


@pytest.mark.parametrize("announced", [True, False])
async def test_413(service: Service, announced: bool) -> None:
    whole = json.dumps({"prompt": "x", "metadata": {"a": "b" * 3_000_000}}).encode()

    async def chunks() -> Any:
        yield whole[:1000]
        yield whole[1000:]

    content = whole if announced else chunks()
    answer = await service.client.post("/v1/jobs", content=content, headers=JSON)
    problem(answer, 413, "body-too-large")


async def test_the_largest_body_is_read(service: Service) -> None:
    body = json.dumps({"prompt": "x"}).encode().ljust(65536)
    answers = [
        await service.client.post("/v1/jobs", content=content, headers=JSON)
        for content in (body, body + b" ")
    ]
    assert [answer.status_code for answer in answers] == [202, 413]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "application/json; charset=latin-1"},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ],
)
async def test_415(service: Service, headers: dict[str, str]) -> None:
    answer = await service.client.post("/v1/jobs", content=b'{"prompt":"x"}', headers=headers)
    problem(answer, 415, "unsupported-media-type")


async def test_422_names_all_wrong_fields_at_once(service: Service) -> None:
    body = {
        "prompt": " ",
        "negative_prompt": 3,
        **{"n": True, "seed": "7", "steps": 201},
        "sampler": "euler",
        "guidance_scale": 20.5,
        "size": "17x17",
        "background": "#12345",
        "webhook_url": "http://example.org/",
        "guidance_interval": [0.9, 0.1],
        "cache": 1,
        "metadata": {"a": 1},
        "promt": "x",
        "a/b~c": 1,
    }
    answer = await service.client.post("/v1/jobs", json=body)
    named = {name: f"/{name}" for name in body} | {"metadata": "/metadata/a", "a/b~c": "/a~1b~0c"}
    assert pointers(answer) == sorted(named.values())


WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, "/prompt"),
    ({"prompt": None}, "/prompt"),
    ({"prompt": ""}, "/prompt"),
    ({"prompt": " \n\t\u3000"}, "/prompt"),
    ({"prompt": "\u200b\u200d"}, "/prompt"),
    ({"prompt": "a\x00b"}, "/prompt"),
    ({"prompt": "a\nb"}, "/prompt"),
    ({"prompt": "a\x1f"}, "/prompt"),
    ({"prompt": "\x85a"}, "/prompt"),
    ({"prompt": "🥑" * 1001}, "/prompt"),
    ({"prompt": ["x"]}, "/prompt"),
    ({"n": 0}, "/n"),
    ({"n": 9}, "/n"),
    ({"n": 1.5}, "/n"),
    ({"n": None}, "/n"),
    ({"seed": -1}, "/seed"),
    ({"seed": 2**53}, "/seed"),
    ({"seed": 2**53 - 2, "n": 3}, "/seed"),
    ({"seed": 10**400}, "/seed"),
    ({"steps": 0}, "/steps"),
    ({"steps": 1001}, "/steps"),
    ({"guidance_scale": -0.1}, "/guidance_scale"),
    ({"guidance_scale": "3"}, "/guidance_scale"),
    ({"guidance_scale": True}, "/guidance_scale"),
    ({"size": "big"}, "/size"),
    ({"size": "١٦x١٦"}, "/size"),
    ({"output_format": "gif"}, "/output_format"),
    ({"background": "red"}, "/background"),
    ({"background": "transparent", "output_format": "jpeg"}, "/background"),
    ({"priority": "urgent"}, "/priority"),
    ({"guidance_interval": [0.5]}, "/guidance_interval/1"),
    ({"guidance_interval": [0, 1.5]}, "/guidance_interval/1"),
    ({"best_of": 9}, "/best_of"),
    ({"best_of": 2, "seed": 2**53 - 1}, "/seed"),
    ({"best_of": 2, "n": 3}, "/best_of"),
    ({"metadata": {str(i): "x" for i in range(17)}}, "/metadata"),
    ({"metadata": {"a": "é" * 2048}}, "/metadata"),
    ({"metadata": []}, "/metadata"),
    ({"webhook_url": "https://example.org/" + "x" * 2048}, "/webhook_url"),
]


@pytest.mark.parametrize(("fields", "pointer"), WRONG)
async def test_422_one_wrong_field(service: Service, fields: dict[str, Any], pointer: str) -> None:
    body = fields if not fields or "prompt" in fields else {"prompt": "x"} | fields
    content = json.dumps(body).encode()
    assert pointers(await service.client.post("/v1/jobs", content=content, headers=JSON)) == [
        pointer
    ]


@pytest.mark.parametrize("body", [b"[]", b'"x"', b"null", b"7", b"1e999"])
async def test_422_body_is_no_object(service: Service, body: bytes) -> None:
    answer = await service.client.post("/v1/jobs", content=body, headers=JSON)
    assert pointers(answer) == [""]


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        (rb'{"prompt": "a\ud83e"}', "/prompt"),
        (rb'{"prompt": "x", "metadata": {"k": "\udfff"}}', "/metadata/k"),
        (rb'{"prompt": "x", "metadata": {"\ud800": "v"}}', "/metadata/?"),
        (rb'{"prompt": "x", "\ud800": 1}', "/?"),
        (b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}", "/seed"),
        (b'{"prompt": "x", "guidance_scale": 1e999}', "/guidance_scale"),
    ],
)
async def test_422_what_no_text_or_number_is(service: Service, body: bytes, pointer: str) -> None:
    assert pointers(await service.client.post("/v1/jobs", content=body, headers=JSON)) == [pointer]


async def test_422_no_alpha(redis_url: str, serve: Serve) -> None:
    from app import keys
    from tests.app.service import CARD

    async with serve() as service:
        card = CARD.model_copy(update={"channels": 3, "default_background": "transparent"})
        service.redis.hset(keys.MODELS, card.name, card.model_dump_json())
        body = {"prompt": "x", "background": "transparent"}
        assert pointers(await service.client.post("/v1/jobs", json=body)) == ["/background"]
        assert (await service.submit())["request"]["background"] == "white"


@pytest.mark.parametrize("default", ["ddim", "lcm"])
async def test_422_steps_of_lcm(serve: Serve, default: str) -> None:
    from app import keys
    from tests.app.service import CARD

    async with serve() as service:
        has = {"samplers": ("ddim", "lcm"), "lcm_steps": 50, "default_sampler": default}
        card = CARD.model_copy(update=has)
        service.redis.hset(keys.MODELS, card.name, card.model_dump_json())
        body = {"prompt": "x", "steps": 51} | ({} if default == "lcm" else {"sampler": "lcm"})
        answer = await service.client.post("/v1/jobs", json=body)
        assert pointers(answer) == ["/steps"]
        assert "at most 50 for lcm" in answer.json()["errors"][0]["message"]
        await service.submit(steps=51, sampler="ddim")


@pytest.mark.parametrize(
    "query",
    ["status=done", "limit=0", "limit=101", "limit=x", "cursor=%00", "cursor=bm8", "stauts=x"],
)
async def test_422_query(service: Service, query: str) -> None:
    answer = await service.client.get(f"/v1/jobs?{query}")
    assert pointers(answer) == ["/" + query.partition("=")[0]]
    assert answer.json()["errors"][0]["in"] == "query"


async def test_429_rate(serve: Serve) -> None:
    async with serve(rate_limit_per_minute=2, api_keys="ann:a,bob:b") as service:
        ann, bob = {"authorization": "Bearer a"}, {"authorization": "Bearer b"}
        first = await service.client.post("/v1/jobs", json={"prompt": "x"}, headers=ann)
        assert first.headers["ratelimit-policy"] == '"default";q=2;w=60'
        assert first.headers["ratelimit"] == '"default";r=1;t=60'
        await service.client.post("/v1/jobs", json={"prompt": ""}, headers=ann)
        third = await service.client.post("/v1/jobs", json={"prompt": "x"}, headers=ann)
        assert problem(third, 429, "quota-exceeded")["violated-policies"] == ["default"]
        assert third.headers["ratelimit"].startswith('"default";r=0;t=')
        assert 1 <= int(third.headers["retry-after"]) <= 60
        assert (await service.client.get("/v1/jobs", headers=ann)).status_code == 200
        other = await service.client.post("/v1/jobs", json={"prompt": "x"}, headers=bob)
        assert other.status_code == 202


async def test_429_active_jobs(serve: Serve) -> None:
    async with serve(max_active_jobs_per_key=2) as service:
        first, _ = await service.submit(), await service.submit()
        refused = await service.client.post("/v1/jobs", json={"prompt": "x"})
        details = problem(refused, 429, "quota-exceeded")
        assert details["violated-policies"] == ["concurrency"]
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        service.draw(first["id"])
        await service.submit()


async def test_the_active_count_heals(serve: Serve) -> None:
    from app import keys

    async with serve(max_active_jobs_per_key=2) as service:
        service.redis.sadd(keys.owner_active("anonymous"), "gone", "gone2")
        await service.submit()
        assert service.redis.scard(keys.owner_active("anonymous")) == 1


async def test_500_tells_nothing(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*args: object) -> None:
        raise RuntimeError("/secret/path redis://host")

    monkeypatch.setattr(type(service.app.state.services.reader), "get", broken)
    answer = await service.client.get("/v1/jobs/01J00000000000000000000000")
    problem(answer, 500, "internal-error")
    assert "secret" not in answer.text
    assert "redis" not in answer.text.lower()


async def test_a_wrong_script_is_our_fault(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*args: object) -> None:
        raise ResponseError("user_script:3: attempt to index nil")

    monkeypatch.setattr(type(service.app.state.services.submitter), "submit", broken)
    answer = await service.client.post("/v1/jobs", json={"prompt": "x"})
    problem(answer, 500, "internal-error")
    assert "user_script" not in answer.text


async def test_request_ids(service: Service) -> None:
    answer = await service.client.get("/healthz", headers={"x-request-id": "abc-1"})
    drawn = await service.client.get("/healthz", headers={"x-request-id": "a\tb" * 99})
    assert answer.headers["x-request-id"] == "abc-1"
    assert len(drawn.headers["x-request-id"]) == 32
    assert answer.headers["x-content-type-options"] == "nosniff"


async def test_every_kind_of_problem_has_a_page(service: Service) -> None:
    for kind in PROBLEMS.values():
        answer = await service.client.get(kind.type)
        assert answer.json()["title"] == kind.title
    problem(await service.client.get("/problems/nope"), 404, "not-found")


def test_every_error_has_a_row() -> None:
    def below(error: type[ApiError]) -> set[type[ApiError]]:
        return {error, *(child for sub in error.__subclasses__() for child in below(sub))}

    assert set(PROBLEMS) == below(ApiError) - {ApiError}
    slugs = [kind.slug for kind in PROBLEMS.values()]
    assert len(set(slugs)) == len(slugs)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(
    body=st.dictionaries(
        st.sampled_from(["prompt", "n", "seed", "size", "metadata", "steps", "guidance_interval"])
        | st.text(st.characters(), max_size=3),
        JSON_VALUES,
        max_size=5,
    )
)
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
async def test_no_body_breaks_the_server(service: Service, body: dict[str, Any]) -> None:
    content = json.dumps(body).encode()
    answer = await service.client.post("/v1/jobs", content=content, headers=JSON)
    assert answer.status_code in (202, 400, 404, 422)
    assert answer.headers["x-request-id"]


@given(prompt=st.text(st.characters(), max_size=1100))
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
async def test_no_prompt_breaks_the_server(service: Service, prompt: str) -> None:
    content = json.dumps({"prompt": prompt}).encode()
    answer = await service.client.post("/v1/jobs", content=content, headers=JSON)
    assert answer.status_code in (202, 422, 429)
    if answer.status_code == 202:
        assert answer.json()["request"]["prompt"] == prompt.strip()


async def test_405_does_not_take_a_route_for_an_image(service: Service) -> None:
    for method in ("GET", "OPTIONS"):
        answer = await service.client.request(method, "/v1/images/generations")
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
