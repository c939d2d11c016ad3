"""Fairness among owners: the order of the queues as submissions make it in a real Redis."""

import random
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import redis
from rq import Queue
from rq.serializers import JSONSerializer

from app import keys
from app.jobs.connection import connect, connect_async
from app.jobs.ids import made_at, new_job_id
from app.jobs.record import JobRecord, JobRequest, JobStatus
from app.jobs.store import JobStore
from app.jobs.submit import Accepted, Submitter
from app.settings import Settings


class Desk:
    """Takes jobs in as the API does, and out as workers do."""

    def __init__(self, client: redis.Redis, submitter: Submitter) -> None:
        self.client = client
        self.records: dict[str, JobRecord] = {}
        self._submitter = submitter
        self._store = JobStore(client)
        self._clock = time.time()

    async def submit(self, owner: str, steps: int = 10, model: str = "tiny") -> str:
        self._clock += 0.002
        request = JobRequest(
            prompt="a", model=model, seed=1, steps=steps, sampler="ddim", guidance_scale=1,
            size="16x16", background="white",
        )  # fmt: skip
        record = JobRecord(
            id=new_job_id(self._clock), owner=owner, created_at=self._clock,
            expires_at=self._clock + 60, retention_s=60, request=request, total_steps=steps,
        )  # fmt: skip
        before = self.waiting()
        outcome = await self._submitter.submit(record)
        assert outcome == Accepted(record.id, self.waiting().index(record.id))
        assert [one for one in self.waiting() if one != record.id] == before
        self.records[record.id] = record
        return record.id

    def waiting(self) -> list[str]:
        return [one.decode("latin-1") for one in self.client.lrange(keys.rq_queue("normal"), 0, -1)]

    def owners(self) -> str:
        return "".join(self.records[one].owner for one in self.waiting())

    def take(self) -> JobRecord:
        job_id = self.client.lpop(keys.rq_queue("normal")).decode()
        assert self._store.start(job_id, "execution", "worker") is not None
        return self.records[job_id]

    def finish(self, record: JobRecord) -> None:
        assert self._store.finish(record.id, "execution", JobStatus.SUCCEEDED)

    async def cancel(self, job_id: str) -> None:
        await self._submitter.cancel(self.records[job_id])


@pytest.fixture
async def desk(redis_url: str) -> AsyncIterator[Desk]:
    settings = Settings(redis_url=redis_url, queue_cap=10_000, max_active_jobs_per_key=10_000)
    client, asking = connect(redis_url), connect_async(redis_url)
    yield Desk(client, Submitter(asking, settings))
    await asking.aclose()
    client.close()


async def many(count: int, submit: Callable[[], Awaitable[str]]) -> list[str]:
    return [await submit() for _ in range(count)]


async def test_one_owner_is_first_come_first_served(desk: Desk) -> None:
    asked = await many(20, lambda: desk.submit("a"))
    assert desk.waiting() == asked
    assert Queue("normal", connection=desk.client, serializer=JSONSerializer).job_ids == asked


async def test_owners_take_turns(desk: Desk) -> None:
    await many(6, lambda: desk.submit("a"))
    await many(3, lambda: desk.submit("b"))
    assert desk.owners() == "abababaaa"
    await desk.submit("c")
    assert desk.owners() == "abcabab" + "aaa"


async def test_a_turn_is_measured_in_work(desk: Desk) -> None:
    await many(4, lambda: desk.submit("a", steps=30))
    await many(6, lambda: desk.submit("b", steps=10))
    assert desk.owners() == "ab" + "bb" + "ab" + "bb" + "aa"


async def test_a_newcomer_has_no_arrears_and_no_privilege(desk: Desk) -> None:
    await many(8, lambda: desk.submit("a"))
    for _ in range(4):
        desk.take()
    await many(3, lambda: desk.submit("b"))
    assert desk.owners() == "bab" + "abaa"  # what a has had before is past


async def test_who_cancelled_everything_owes_nothing(desk: Desk) -> None:
    for job in await many(50, lambda: desk.submit("a")):
        await desk.cancel(job)
    await many(3, lambda: desk.submit("b"))
    await many(2, lambda: desk.submit("a"))
    assert desk.owners() == "babab"


async def test_entries_of_others_are_no_obstacle(desk: Desk) -> None:
    await many(3, lambda: desk.submit("a"))
    desk.client.lpush(keys.rq_queue("normal"), b"\xff\xfe", "", "stranger")
    desk.client.set(keys.job("stranger"), "no hash")
    await many(2, lambda: desk.submit("b"))
    ours = [desk.records[one].owner for one in desk.waiting() if one in desk.records]
    assert "".join(ours) == "ababa"


@pytest.mark.parametrize("seed", range(2))
async def test_owners_that_always_wait_get_equal_work(desk: Desk, seed: int) -> None:
    """A thousand jobs of three owners, of whom one floods; guests come and go, some cancel."""
    dice = random.Random(seed)
    had: Counter[str] = Counter({"a": 0, "b": 0, "c": 0})
    flying: deque[JobRecord] = deque()
    for _ in range(300):
        for owner, wanted in (("a", 60), ("b", 3), ("c", 1)):
            for _ in range(min(2, wanted - desk.owners().count(owner))):
                await desk.submit(owner, dice.randint(10, 50))
        if dice.random() < 0.2:
            await desk.submit("guest", dice.randint(10, 50))
        if dice.random() < 0.05:
            await desk.cancel(dice.choice([one for one in desk.waiting() if owns(desk, one, "a")]))
        taken = desk.take()
        flying.append(taken)
        had[taken.owner] += taken.request.forwards
        if len(flying) > 4:
            desk.finish(flying.popleft())
        for owner in "abc":
            own = [one for one in desk.waiting() if owns(desk, one, owner)]
            assert own == sorted(own)  # ids sort by time
    always = [had[owner] for owner in "abc"]
    assert min(always) > 1500
    # One job of each that went first, and what a cancelled job would have had.
    assert max(always) - min(always) <= 2 * 50 + 0.05 * 300 * 50


def owns(desk: Desk, job_id: str, owner: str) -> bool:
    return desk.records[job_id].owner == owner


async def test_models_keep_separate_accounts(desk: Desk) -> None:
    await many(3, lambda: desk.submit("a", model="one"))
    await many(3, lambda: desk.submit("b", model="one"))
    await desk.submit("a", model="two")
    ours = [desk.records[one] for one in desk.waiting() if desk.records[one].request.model == "one"]
    assert "".join(one.owner for one in ours) == "ababab"


async def test_a_model_that_was_not_drawn_for_long_claims_no_arrears(desk: Desk) -> None:
    await desk.submit("b", model="two")
    await many(34, lambda: desk.submit("a", model="one"))
    for _ in range(31):
        desk.finish(desk.take())
    await many(3, lambda: desk.submit("b", model="two"))
    await many(3, lambda: desk.submit("c", model="three"))
    assert desk.owners() == "bcabcabcaa"


def test_ids_tell_when_they_were_made() -> None:
    now = time.time()
    assert abs(made_at(new_job_id(now)) - now) < 0.002
    assert made_at("stranger") == float("inf")
