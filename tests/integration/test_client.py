"""The Python client and the command line against a real service."""

import itertools
import json
import subprocess

import pytest

from app.client import (
    AsyncAvocat,
    Avocat,
    BadRequest,
    Ended,
    JobCanceled,
    JobTimeout,
    NotFound,
    Progressed,
)
from tests.integration.service import AVOCAT, Service, avocat, environment


def test_one_call_draws(service: Service) -> None:
    with Avocat(service.url) as client:
        first = client.generate("a red apple", n=2, seed=7, size="16x16")
        again = client.generate("a red apple", n=2, seed=7, size="16x16", cache=False)
        assert client.models()[0].id == "tiny"
    assert [picture.seed for picture in first] == [7, 8]
    assert [picture.data for picture in first] == [picture.data for picture in again]
    assert first[0].job.id != again[0].job.id


def test_a_job_is_followed_listed_and_canceled(service: Service) -> None:
    with Avocat(service.url) as client:
        job = client.submit("a fox", steps=200, n=4, metadata={"of": "test_client"})
        events = list(client.stream(job, previews=2))
        assert any(isinstance(event, Progressed) for event in events)
        assert isinstance(events[-1], Ended)
        assert events[-1].job == client.wait(job) == client.get(job.id)
        endless = client.submit("endless", steps=1000, n=8)
        with pytest.raises(JobTimeout):
            client.wait(endless, timeout_s=0.2)
        client.cancel(endless)
        with pytest.raises(JobCanceled):
            client.wait(endless)
        listed = itertools.islice(client.list(page_size=1), 2)
        assert [found.id for found in listed] == [endless.id, job.id]


def test_refusals_carry_the_problem(service: Service) -> None:
    with Avocat(service.url) as client:
        with pytest.raises(NotFound) as missing:
            client.get("nobody")
        assert missing.value.problem.type == "/problems/job-not-found"
        with pytest.raises(BadRequest) as wrong:
            client.submit("x", n=9, steps=0)
        assert [field.pointer for field in wrong.value.problem.errors or ()] == ["/n", "/steps"]
        with pytest.raises(BadRequest) as query:
            next(client.list(page_size=0))
        assert [field.place for field in query.value.problem.errors or ()] == ["query"]


async def test_the_same_with_an_event_loop(service: Service) -> None:
    async with AsyncAvocat(service.url) as client:
        [picture] = await client.generate("a red apple", seed=7, size="16x16")
        assert picture.data.startswith(b"\x89PNG")
        job = await client.submit("a fox")
        events = [event async for event in client.stream(job)]
        assert isinstance(events[-1], Ended)
        found = [found async for found in client.list(status="succeeded")]
        assert found[0].id == (await client.wait(job)).id
        assert (await client.cancel(job)).status == "succeeded"


def test_commands_look_at_jobs_and_cancel_them(service: Service) -> None:
    job = service.submit("a long one", steps=1000, n=8)
    server = ("--server", service.url)
    assert job["id"] in avocat("jobs", "list", "--limit", "3", *server).stdout
    assert "a long one" in avocat("jobs", "show", job["id"], *server).stdout
    canceled = json.loads(avocat("jobs", "cancel", job["id"], "--json", *server).stdout)
    assert canceled["id"] == job["id"]
    assert service.finished(job["id"])["status"] == "canceled"
    assert avocat("jobs", "show", "nobody", *server).returncode == 2
    both = avocat("jobs", "cancel", "nobody", job["id"], *server)
    assert (both.returncode, both.stdout) == (2, f"{job['id']} canceled\n")


def test_prompts_from_standard_input(service: Service, tmp_path: object) -> None:
    ended = subprocess.run(
        [*AVOCAT, "generate", "-", "-o", f"{tmp_path}/out/", "--size", "16x16", "--format", "webp",
         "--seed", "7", "--server", service.url],
        input="a red apple\n\n \x01 \na fox\n",
        env=environment({}), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ended.returncode == 2  # one prompt is wrong, and the others are drawn
    assert "control character" in ended.stderr
    names = [line.rpartition("/")[2] for line in ended.stdout.splitlines()]
    assert names == ["001-a-red-apple-7.webp", "003-a-fox-7.webp"]
