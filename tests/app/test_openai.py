"""OpenAI's own client, unmodified, against the API; the test plays the worker."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from app import event_stream, keys
from app.jobs.record import JobStatus, Problem
from tests.app.service import PNG, Serve, Service, listening, until

PROBLEM = Problem(type="/problems/x", title="X", status=500, detail="The device is gone")
IGNORED = {
    "quality": "high", "style": "vivid", "moderation": "low", "user": "me",
    "safety_identifier": "me", "complexity": "low", "output_compression": 50,
}  # fmt: skip


@asynccontextmanager
async def speaking(service: Service, key: str = "any") -> AsyncIterator[AsyncOpenAI]:
    async with (
        listening(service.app) as url,
        AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=20) as client,
    ):
        yield client


async def queued(service: Service) -> str:
    """The job that waits, as soon as there is one."""
    queue = keys.rq_queue("normal")
    await until(lambda: service.redis.llen(queue))
    return str(service.redis.lindex(queue, 0).decode())


async def drawn(service: Service) -> str:
    job = await queued(service)
    service.draw(job)
    return job


async def test_pictures_in_the_answer(service: Service) -> None:
    async with speaking(service) as client:
        call = client.images.with_raw_response.generate(
            prompt="a red apple", n=2, size="auto", background="auto", model=None,
            extra_body={"seed": 7, "steps": 3} | IGNORED,
        )  # fmt: skip
        answer, job = await asyncio.gather(call, drawn(service))
    images = answer.parse()
    assert answer.headers["x-job-id"] == job
    assert [base64.b64decode(one.b64_json) for one in images.data] == [PNG, PNG]
    assert set(answer.http_response.json()) == {
        *("created", "data", "background", "output_format", "size")
    }
    assert (images.size, images.output_format) == ("16x16", "png")
    assert images.background == "transparent"
    request = (await service.job(job))["request"]
    assert (request["seed"], request["steps"], request["n"]) == (7, 3, 2)


async def test_pictures_by_url(service: Service) -> None:
    async with speaking(service) as client:
        call = client.images.generate(
            prompt="a red apple", response_format="url", background="opaque", model="tiny"
        )
        images, job = await asyncio.gather(call, drawn(service))
        assert images.background == "opaque"
        assert (await service.job(job))["request"]["background"] == "white"
        [image] = images.data
        assert image.url.startswith(str(client.base_url))
        assert (await service.client.get(image.url)).content == PNG


async def test_the_client_without_async(service: Service) -> None:
    def generate(url: str) -> Any:
        with OpenAI(base_url=url, api_key="any", max_retries=0) as client:
            events = list(client.images.generate(prompt="a red apple", stream=True))
            return client.models.list().data, client.models.retrieve("tiny"), events

    async with listening(service.app) as url:
        calls = asyncio.to_thread(generate, f"{url}/v1"), drawn(service)
        (models, model, [event]), _ = await asyncio.gather(*calls)
    assert models == [model]
    assert (model.id, model.object, model.owned_by) == ("tiny", "model", "avocat")
    assert event.type == "image_generation.completed"


async def play(service: Service) -> None:
    """Show two previews of each picture, then draw."""
    job = await queued(service)
    wish = service.redis.hget(keys.job(job), "previews")
    assert wish == b"2"
    # What is shown before somebody looks is shown to nobody.
    await until(lambda: job in service.app.state.services.events._topics)
    for step, index in ((7, 0), (7, 1), (14, 0), (14, 1)):
        event = {"kind": "preview", "job_id": job, "attempt": 1, "step": step, "index": index}
        data = base64.b64encode(b"%d" % step).decode()
        event["data_url"] = f"data:image/png;base64,{data}"
        service.redis.publish(keys.EVENTS, json.dumps(event))
    service.draw(job)


async def test_a_stream_with_partial_images(service: Service) -> None:
    async with speaking(service) as client:
        playing = asyncio.create_task(play(service))
        stream = await client.images.generate(
            prompt="a red apple", n=2, stream=True, partial_images=2
        )
        events = [event async for event in stream]
        await playing
    first, second, *completed = events
    for index, (event, step) in enumerate(((first, b"7"), (second, b"14"))):
        assert event.type == "image_generation.partial_image"
        assert (event.partial_image_index, base64.b64decode(event.b64_json)) == (index, step)
    assert [event.type for event in completed] == ["image_generation.completed"] * 2
    for event in completed:
        assert base64.b64decode(event.b64_json) == PNG
        assert (event.usage.total_tokens, event.quality) == (0, "auto")
    for event in events:
        assert (event.size, event.background, event.output_format) == (
            *("16x16", "transparent", "png"),
        )


async def test_comments_come_while_steps_are_done(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Progress is no event of this API, so it does not keep the stream alive."""

    async def work() -> None:
        job = await queued(service)
        service.take(job)
        for step in range(1, 11):
            service.store.progress([(job, "e1", step)])
            await asyncio.sleep(0.03)
        service.store.finish(job, "e1", JobStatus.CANCELED)

    monkeypatch.setattr(event_stream, "KEEP_ALIVE_S", 0.1)
    call = service.client.post("/v1/images/generations", json={"prompt": "x", "stream": True})
    answer, _ = await asyncio.gather(call, work())
    assert answer.text.count(": ping\n\n") >= 2


async def test_a_stream_on_the_wire(service: Service) -> None:
    call = service.client.post("/v1/images/generations", json={"prompt": "x", "stream": True})
    answer, job = await asyncio.gather(call, drawn(service))
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-job-id"] == job
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.text.startswith("event: image_generation.completed\ndata: {")
    assert answer.text.endswith("}\n\ndata: [DONE]\n\n")


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"size": "1024x1024"}, "size", "16x16, 32x32"),
        ({"n": 9}, "n", "less than or equal to 8"),
        ({"partial_images": 4, "stream": True}, "partial_images", "less than or equal to 3"),
        ({"partial_images": 1}, "partial_images", "stream"),
        ({"stream": True, "response_format": "url"}, "response_format", "b64_json"),
        ({"background": "white"}, "background", "auto, transparent or opaque"),
        ({"output_format": "svg"}, "output_format", "svg"),
        (
            {"background": "transparent", "output_format": "jpeg"},
            *("background", "use another background or output_format"),
        ),
        ({"extra_body": {"setps": 3}}, "setps", "No such field"),
        ({"prompt": " ", "n": 0}, None, "prompt: The text is blank"),
    ],
)
async def test_wrong_fields(
    service: Service, fields: dict[str, Any], param: str | None, said: str
) -> None:
    async with speaking(service) as client:
        with pytest.raises(openai.UnprocessableEntityError) as caught:
            await client.images.generate(**{"prompt": "a red apple"} | fields)
    error = caught.value
    assert (error.type, error.code) == ("invalid_request_error", "invalid_request")
    assert said in error.body["message"]
    assert param in (None, error.param)


async def test_all_wrong_fields_are_named(service: Service) -> None:
    body = {"prompt": "", "stream": 1, "n": "x", "background": 7}
    answer = await service.client.post("/v1/images/generations", json=body)
    named = {part.partition(":")[0] for part in answer.json()["error"]["message"].splitlines()}
    assert named == set(body)
    for odd, status in ((b"{", 400), (b"[]", 422), (b'{"prompt": "\\ud800"}', 422)):
        headers = {"Content-Type": "application/json"}
        wrong = await service.client.post("/v1/images/generations", content=odd, headers=headers)
        assert (wrong.status_code, set(wrong.json())) == (status, {"error"})


async def test_refusals_become_the_clients_exceptions(serve: Serve) -> None:
    settings = {"api_keys": "ann:a", "queue_cap": 1, "max_active_jobs_per_key": 1}
    async with serve(**settings) as service, speaking(service, "wrong") as client:
        with pytest.raises(openai.AuthenticationError) as unknown:
            await client.images.generate(prompt="x")
        assert unknown.value.code == "unauthorized"
        ann = client.with_options(api_key="a")
        with pytest.raises(openai.NotFoundError) as missing:
            await ann.images.generate(prompt="x", model="dall-e-3")
        assert (missing.value.code, "tiny" in missing.value.message) == ("model_not_found", True)
        with pytest.raises(openai.PermissionDeniedError):
            await ann.images.generate(prompt="x", extra_body={"priority": "high"})
        job = (await service.submit(headers={"Authorization": "Bearer a"}))["id"]
        with pytest.raises(openai.InternalServerError) as full:
            await ann.images.generate(prompt="x")
        assert (full.value.status_code, full.value.code) == (503, "queue_full")
        service.take(job)
        with pytest.raises(openai.RateLimitError) as busy:
            await ann.images.generate(prompt="x")
        assert busy.value.response.headers["retry-after"] == "5"


async def test_an_unknown_model(service: Service) -> None:
    async with speaking(service) as client:
        with pytest.raises(openai.NotFoundError) as caught:
            await client.models.retrieve("dall-e-3")
    assert caught.value.code == "model_not_found"
    assert caught.value.response.json()["type"] == "/problems/model-not-found"


@pytest.mark.parametrize(
    ("status", "expected"),
    [(JobStatus.FAILED, openai.InternalServerError), (JobStatus.CANCELED, openai.ConflictError)],
)
async def test_a_job_without_pictures(
    service: Service, status: JobStatus, expected: type[openai.APIStatusError]
) -> None:
    async def end() -> None:
        job = await queued(service)
        service.take(job)
        error = PROBLEM if status is JobStatus.FAILED else None
        service.store.finish(job, "e1", status, error=error)

    async with speaking(service) as client:
        ending = asyncio.create_task(end())
        with pytest.raises(expected) as caught:
            # Retried, it would wait for a second job in vain.
            await client.with_options(max_retries=2).images.generate(prompt="x")
        await ending
        ending = asyncio.create_task(end())
        with pytest.raises(openai.APIError, match=r"canceled|The device is gone") as streamed:
            async for _ in await client.images.generate(prompt="x", stream=True):
                pass
        await ending
    assert streamed.value.code == caught.value.code


async def test_a_call_that_takes_too_long(serve: Serve) -> None:
    async with serve(sync_timeout_s=1) as service, speaking(service) as client:
        with pytest.raises(openai.InternalServerError) as caught:
            await client.with_options(max_retries=2).images.generate(prompt="x")
        [job] = (await service.client.get("/v1/jobs")).json()["data"]
    assert (caught.value.status_code, caught.value.code) == (504, "job_not_finished")
    assert job["id"] in caught.value.message
    assert job["id"] == caught.value.response.headers["x-job-id"]
    assert job["status"] == "queued"


async def canceled(service: Service, job: str) -> None:
    await until(lambda: service.redis.hget(keys.job(job), "status") == b"canceled")


async def test_hanging_up_cancels(service: Service) -> None:
    async with speaking(service) as client:
        call = asyncio.create_task(client.images.generate(prompt="x"))
        waiting = await queued(service)
        call.cancel()
        await canceled(service, waiting)
        with pytest.raises(openai.APITimeoutError):
            await client.with_options(timeout=0.5).images.generate(prompt="x")
        await until(lambda: not service.redis.llen(keys.rq_queue("normal")))


async def test_hanging_up_a_stream_cancels(service: Service) -> None:
    async with speaking(service) as client:
        stream = await client.images.generate(prompt="x", stream=True, partial_images=1)
        job = await queued(service)
        await stream.close()
        await canceled(service, job)


async def test_a_server_that_ends_gives_the_job_up(service: Service) -> None:
    async with speaking(service) as client:
        call = asyncio.create_task(client.images.generate(prompt="x"))
        job = await queued(service)
        service.app.state.services.events.release()
        with pytest.raises(openai.InternalServerError) as caught:
            await call
    assert (caught.value.status_code, caught.value.code) == (503, "unavailable")
    await canceled(service, job)
