"""The whole job API against a model of it in memory: any order of calls, by two owners and workers.

The service is the real one on a real Redis; only the network is played by `Service`.
"""

import asyncio
import tempfile
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from app import keys
from app.jobs.record import JobStatus, Problem
from tests.app.service import Service, serving

OWNERS = {"ann": {"Authorization": "Bearer a"}, "bob": {"Authorization": "Bearer b"}}
QUEUE_CAP, MOST_ACTIVE = 5, 3
owners = st.sampled_from(sorted(OWNERS))
FAULT = Problem(type="/problems/job-failed", title="It failed", status=500, detail="It failed")
TERMINAL = {"succeeded", "failed", "canceled"}


@dataclass
class Job:
    """What the model knows of a job."""

    id: str
    owner: str
    priority: str
    status: str = "queued"
    execution: str = ""
    cancel_asked: bool = False
    seen: Any = field(default=None, repr=False)  # its object once it was terminal

    @property
    def active(self) -> bool:
        return self.status not in TERMINAL


class Model(RuleBasedStateMachine):
    """Rules are what clients and workers do; after each, the service says what the model says."""

    redis_url = ""
    jobs = Bundle("jobs")
    running = Bundle("running")

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[str, Job] = {}
        self.remembered: dict[tuple[str, str], tuple[Any, str]] = {}
        self.executions = 0
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()
        self.folder = tempfile.TemporaryDirectory(prefix="avocat-model-")
        self.service = self.run(self._start())

    async def _start(self) -> Service:
        serve = serving(self.redis_url, Path(self.folder.name))
        service = await self.stack.enter_async_context(
            serve(
                api_keys="ann:a,bob:b:high",
                queue_cap=QUEUE_CAP,
                max_active_jobs_per_key=MOST_ACTIVE,
            )
        )
        for key in service.redis.scan_iter("*"):
            if key != keys.MODELS.encode():
                service.redis.delete(key)
        return service

    def run(self, what: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(what)

    def teardown(self) -> None:
        self.run(self.stack.aclose())
        self.runner.close()
        self.folder.cleanup()

    def of(self, owner: str) -> list[Job]:
        return [job for job in self.known.values() if job.owner == owner]

    @property
    def queued(self) -> list[Job]:
        return [job for job in self.known.values() if job.status == "queued"]

    @rule(
        target=jobs,
        owner=owners,
        prompt=st.sampled_from(["a cat", "a dog"]),
        priority=st.sampled_from(["low", "normal", "high"]),
        key=st.sampled_from([None, None, "k1", "k2"]),
    )
    def submit(self, owner: str, prompt: str, priority: str, key: str | None) -> Any:
        body = {"prompt": prompt, "priority": priority}
        headers = OWNERS[owner] | ({"Idempotency-Key": key} if key else {})
        answer = self.run(self.service.client.post("/v1/jobs", json=body, headers=headers))
        before = self.remembered.get((owner, key)) if key else None
        if priority == "high" and owner != "bob":
            assert answer.status_code == 403
        elif before is not None and before[0] == body:
            assert (answer.status_code, answer.json()["id"]) == (
                200 if not self.known[before[1]].active else answer.status_code,
                before[1],
            )
            assert answer.headers["Idempotency-Replayed"] == "true"
        elif before is not None:
            assert answer.status_code == 422
        elif len(self.queued) >= QUEUE_CAP:
            assert (answer.status_code, answer.json()["type"]) == (503, "/problems/queue-full")
        elif sum(job.active for job in self.of(owner)) >= MOST_ACTIVE:
            assert answer.json()["violated-policies"] == ["concurrency"]
        else:
            assert answer.status_code == 202, answer.text
            job = Job(answer.json()["id"], owner, priority)
            assert job.id not in self.known
            self.known[job.id] = job
            if key:
                self.remembered[owner, key] = body, job.id
            return job.id
        return multiple()

    @rule(target=running, data=st.data())
    def take(self, data: st.DataObject) -> Any:
        """A worker takes the job at the head of a queue."""
        queues = [keys.rq_queue(name) for name in keys.QUEUES]
        heads = [found for queue in queues if (found := self.service.redis.lindex(queue, 0))]
        assert bool(heads) == bool(self.queued)
        if not heads:
            return multiple()
        job = self.known[data.draw(st.sampled_from(heads)).decode()]
        self.executions += 1
        execution = f"e{self.executions}"
        assert self.service.take(job.id, execution).attempts >= 1
        job.status, job.execution = "running", execution
        return (job.id, execution)

    @rule(job_id=jobs, owner=owners, by=st.sampled_from(["DELETE", "POST"]))
    def cancel(self, job_id: str, owner: str, by: str) -> None:
        path = f"/v1/jobs/{job_id}" + ("/cancel" if by == "POST" else "")
        answer = self.run(self.service.client.request(by, path, headers=OWNERS[owner]))
        job = self.known[job_id]
        if job.owner != owner:
            assert answer.status_code == 404
            return
        assert answer.status_code == 200
        if job.status == "queued":
            job.status = "canceled"
        job.cancel_asked = True

    @rule(taken=running, status=st.sampled_from([JobStatus.FAILED, JobStatus.CANCELED]))
    def end(self, taken: tuple[str, str], status: JobStatus) -> None:
        """The worker that has it ends a job; one that had it before cannot."""
        job_id, execution = taken
        job = self.known[job_id]
        holds = job.status == "running" and job.execution == execution
        error = FAULT if status is JobStatus.FAILED else None
        assert self.service.store.finish(job_id, execution, status, error=error) is holds
        if holds:
            job.status = status.value

    @rule(taken=consumes(running))
    def give_back(self, taken: tuple[str, str]) -> None:
        """The worker that has it puts a job back; one that had it before cannot."""
        job_id, execution = taken
        job = self.known[job_id]
        holds = job.status == "running" and job.execution == execution
        assert self.service.store.requeue(job_id, execution) is holds
        if holds:
            self.service.redis.lpush(keys.rq_queue(job.priority), job_id)
            if job.cancel_asked:  # the next worker finds it canceled
                self.service.redis.lrem(keys.rq_queue(job.priority), 0, job_id)
                assert self.service.store.start(job_id, "late", "w") is None
                job.status = "canceled"
            else:
                job.status, job.execution = "queued", ""

    @invariant()
    def lists_and_jobs_say_what_the_model_says(self) -> None:
        for owner, headers in OWNERS.items():
            listed = self.run(self.service.client.get("/v1/jobs", headers=headers)).json()["data"]
            mine = [job.id for job in reversed(self.of(owner))]
            assert [one["id"] for one in listed] == mine
            for one in listed:
                self._compare(self.known[one["id"]], one)

    def _compare(self, job: Job, shown: dict[str, Any]) -> None:
        assert shown["status"] == job.status
        if job.status in TERMINAL:
            job.seen = job.seen or shown
            assert shown == job.seen  # never changes again
        assert (shown["queue_position"] is not None) == (job.status == "queued")

    @invariant()
    def redis_holds_no_more_and_no_less(self) -> None:
        waiting = [
            found.decode()
            for name in keys.QUEUES
            for found in self.service.redis.lrange(keys.rq_queue(name), 0, -1)
        ]
        assert sorted(waiting) == sorted(job.id for job in self.queued)
        for owner in OWNERS:
            active = self.service.redis.smembers(keys.owner_active(owner))
            assert {found.decode() for found in active} == {
                job.id for job in self.of(owner) if job.active
            }


@pytest.mark.usefixtures("redis_url")
def test_any_order_of_calls(redis_url: str) -> None:
    class OnThisRedis(Model):
        pass

    OnThisRedis.redis_url = redis_url
    run_state_machine_as_test(
        OnThisRedis,
        settings=settings(
            max_examples=20,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
