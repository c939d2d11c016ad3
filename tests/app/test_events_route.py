"""A job as server-sent events."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from httpx_sse import EventSource, ServerSentEvent

from app import event_stream, keys
from app.jobs.events import EventHub
from app.jobs.record import JobStatus
from app.seen import Seen
from tests.app.service import Serve, Service, listening


@asynccontextmanager
async def following(
    service: Service, job_id: str, last: str | None = None, query: str = ""
) -> AsyncIterator[Callable[[], Any]]:
    """A stream of the job's events; call it for the next one, None when the stream has ended."""
    headers = {"Last-Event-ID": last} if last is not None else {}
    async with (
        listening(service.app) as url,
        httpx.AsyncClient(base_url=url, timeout=10) as client,
        client.stream("GET", f"/v1/jobs/{job_id}/events{query}", headers=headers) as answer,
    ):
        assert answer.status_code == 200
        stream = EventSource(answer).aiter_sse()

        async def following_event() -> ServerSentEvent | None:
            return await anext(stream, None)

        yield following_event


def told(event: ServerSentEvent) -> tuple[str, Any]:
    """What an event says in short."""
    data = json.loads(event.data)
    match event.event:
        case "status":
            return data["status"], data["queue_position"]
        case "progress":
            return "progress", data["step"]
        case "preview":
            return "preview", data["step"]
    return event.event, data["status"]


async def test_from_the_queue_to_the_end(service: Service) -> None:
    job = (await service.submit())["id"]
    async with following(service, job) as following_event:
        assert told(await following_event()) == ("queued", 0)
        record = service.take(job)
        assert told(await following_event()) == ("running", None)
        for step in (1, 7):
            service.store.progress([(job, "e1", step)])
            event = await following_event()
            assert (told(event), event.id) == (("progress", step), f"1-{step}")
        service.store.finish(job, record.execution, JobStatus.CANCELED)
        end = await following_event()
        assert (end.event, end.id) == ("canceled", "end")
        assert json.loads(end.data) == await service.job(job)
        assert await following_event() is None


async def test_an_ended_job_is_told_at_once_and_once(service: Service) -> None:
    job = (await service.submit())["id"]
    service.draw(job)
    path = f"/v1/jobs/{job}/events"
    answer = await service.client.get(path)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.headers["cache-control"] == "no-store, no-transform"
    assert answer.text.startswith("event: succeeded\ndata: {")
    assert answer.text.endswith("\nid: end\n\n")
    again = await service.client.get(path, headers={"Last-Event-ID": "end"})
    assert (again.status_code, again.content) == (204, b"")
    head = await service.client.head(path)
    assert (head.status_code, head.content) == (200, b"")


@pytest.mark.parametrize(
    ("last", "first"),
    [
        ("1-7", ("progress", 9)),  # nothing that was seen comes again
        ("1-5", ("progress", 7)),
        ("1-q0", ("running", None)),
        ("0-7", ("running", None)),
        ("nonsense", ("running", None)),
    ],
)
async def test_resuming(service: Service, last: str, first: tuple[str, Any]) -> None:
    job = (await service.submit())["id"]
    service.take(job)
    service.store.progress([(job, "e1", 7)])
    async with following(service, job, last) as following_event:
        if last == "1-7":
            await asyncio.sleep(0.2)
            service.store.progress([(job, "e1", 9)])
        assert told(await following_event()) == first


async def test_a_job_that_goes_back_to_the_queue(service: Service) -> None:
    job = (await service.submit())["id"]
    service.take(job)
    service.store.progress([(job, "e1", 7)])
    async with following(service, job, "1-7") as following_event:
        service.store.requeue(job, "e1")
        assert told(await following_event()) == ("queued", 0)
        service.take(job, "e2")
        event = await following_event()
        assert (told(event), event.id) == (("running", None), "2-0")


async def test_places_in_line_are_told(service: Service) -> None:
    first, job = [(await service.submit())["id"] for _ in range(2)]
    async with following(service, job) as following_event:
        assert told(await following_event()) == ("queued", 1)
        service.take(first)
        event = await following_event()
        assert (told(event), event.id) == (("queued", 0), "1-q0")


async def test_lost_messages_only_cost_time(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = (await service.submit())["id"]
    service.take(job)
    async with following(service, job) as following_event:
        assert told(await following_event()) == ("running", None)
        monkeypatch.setattr(EventHub, "_dispatch", lambda self, data: None)
        service.store.progress([(job, "e1", 3)])
        assert told(await following_event()) == ("progress", 3)
        service.store.finish(job, "e1", JobStatus.CANCELED)
        assert told(await following_event()) == ("canceled", "canceled")


def publish_preview(service: Service, job: str, step: int, attempt: int = 1) -> None:
    event = {"kind": "preview", "job_id": job, "attempt": attempt, "step": step, "index": 0}
    service.redis.publish(keys.EVENTS, json.dumps(event | {"data_url": "data:,x"}))


async def test_previews_are_asked_for_and_handed_on(service: Service) -> None:
    job = (await service.submit(steps=20))["id"]
    service.take(job)
    async with following(service, job, query="?previews=3") as following_event:
        assert told(await following_event()) == ("running", None)
        assert service.store.progress([(job, "e1", 0)]).previews == {job: 3}
        publish_preview(service, job, 3, attempt=0)  # of an attempt that was lost
        for step in (2, 5, 6, 10, 15):  # another listener asked for more
            publish_preview(service, job, step)
        events = [await following_event() for _ in range(3)]
        assert [told(event) for event in events] == [("preview", step) for step in (5, 10, 15)]
        assert json.loads(events[0].data)["data_url"] == "data:,x"


async def test_who_asks_for_none_gets_no_previews(service: Service) -> None:
    job = (await service.submit())["id"]
    service.take(job)
    async with following(service, job) as following_event:
        assert told(await following_event()) == ("running", None)
        assert service.store.progress([(job, "e1", 0)]).previews == {}
        publish_preview(service, job, 5)
        service.store.progress([(job, "e1", 6)])
        assert told(await following_event()) == ("progress", 6)


async def test_an_ended_job_takes_no_wish(service: Service) -> None:
    job = (await service.submit())["id"]
    service.draw(job)
    await service.client.get(f"/v1/jobs/{job}/events?previews=3")
    assert service.redis.hget(keys.job(job), "previews") == b"0"
    assert (await service.client.get(f"/v1/jobs/{job}/events?previews=21")).status_code == 422


async def test_comments_keep_the_stream_open(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_stream, "KEEP_ALIVE_S", 0.05)
    job = (await service.submit())["id"]
    async with (
        listening(service.app) as url,
        httpx.AsyncClient(base_url=url) as client,
        client.stream("GET", f"/v1/jobs/{job}/events") as answer,
    ):
        lines = answer.aiter_lines()
        heard = [await anext(lines) for _ in range(9)]
    assert heard[0] == "event: status"
    assert heard[4::2] == [": ping"] * 3


async def test_the_server_ends_without_waiting_for_streams(service: Service) -> None:
    job = (await service.submit())["id"]
    async with asyncio.timeout(5), httpx.AsyncClient() as client:
        async with listening(service.app) as url:
            request = client.build_request("GET", f"{url}/v1/jobs/{job}/events")
            answer = await client.send(request, stream=True)
        assert (await answer.aread()).endswith(b"id: 1-q0\n\n")  # ended, not cut off


async def test_others_jobs_are_not_followed(serve: Serve) -> None:
    async with serve(api_keys="ann:a,bob:b") as service:
        job = (await service.submit(headers={"Authorization": "Bearer a"}))["id"]
        path = f"/v1/jobs/{job}/events"
        theirs = await service.client.get(path, headers={"Authorization": "Bearer b"})
        assert theirs.status_code == 404
        assert (await service.client.get(path)).status_code == 401


@pytest.mark.parametrize("seen", [Seen(1, None, 3), Seen(2, None), Seen(3, 17), Seen(1, 0)])
def test_ids_can_be_read_again(seen: Seen) -> None:
    assert Seen.read(str(seen)) == seen


@pytest.mark.parametrize("text", ["", "end", "1", "-1", "1-", "1-x", "1-7\n", "٣-1", "9" * 99])
def test_other_ids_are_none_of_ours(text: str) -> None:
    assert Seen.read(text) is None
