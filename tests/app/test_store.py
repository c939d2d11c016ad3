"""The job state machine as workers see it."""

import json
from collections.abc import Iterator

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app import keys
from app.jobs.record import JobRecord, JobRequest, JobStatus, Problem, StoredImage, to_hash
from app.jobs.store import JobStore, Wishes
from models.guidance import acts

JOB = "01J00000000000000000000000"
PROBLEM = Problem(type="/problems/x", title="X", status=500, detail="y")
IMAGE = StoredImage(
    index=0,
    name=f"{JOB}_e1_0.png",
    seed=1,
    width=8,
    height=8,
    content_type="image/png",
    bytes=3,
    sha256="00",
)


def record(job_id: str = JOB) -> JobRecord:
    """A queued job."""
    request = JobRequest(
        prompt="🥑",
        model="m",
        seed=1,
        steps=3,
        sampler="ddim",
        guidance_scale=1.5,
        size="8x8",
        background="white",
    )
    return JobRecord(
        id=job_id,
        owner="o",
        created_at=1.25,
        expires_at=2.5,
        retention_s=60,
        total_steps=3,
        request=request,
        metadata={"é": "ü"},
    )


def _write(client: redis.Redis) -> None:
    client.hset(keys.job(JOB), mapping=to_hash(record()))  # type: ignore[arg-type]


@pytest.fixture
def connection(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        _write(client)
        client.sadd(keys.owner_active("o"), JOB)
        client.zadd(keys.owner_jobs("o"), {JOB: 1.25})
        yield client


@pytest.fixture
def store(connection: redis.Redis) -> JobStore:
    return JobStore(connection)


def test_a_record_survives_redis(store: JobStore) -> None:
    assert store.get(JOB) == record()
    assert store.get("01J00000000000000000000001") is None


def test_start_hands_over_the_job(store: JobStore) -> None:
    started = store.start(JOB, "e1", "w")
    assert started is not None
    assert (started.status, started.execution, started.worker) == (JobStatus.RUNNING, "e1", "w")
    assert (started.attempts, started.step) == (1, 0)
    assert started.started_at is not None


def test_a_lost_execution_is_taken_over(store: JobStore) -> None:
    first = store.start(JOB, "e1", "w")
    again = store.start(JOB, "e2", "v")
    assert first is not None
    assert again is not None
    assert (again.attempts, again.execution, again.started_at) == (2, "e2", first.started_at)
    assert store.progress([(JOB, "e1", 2)]).evict == [JOB]
    assert not store.finish(JOB, "e1", JobStatus.SUCCEEDED, images=[IMAGE])
    assert not store.requeue(JOB, "e1")
    assert store.finish(JOB, "e2", JobStatus.SUCCEEDED)


def test_progress_is_one_event_for_all_jobs(store: JobStore, connection: redis.Redis) -> None:
    store.start(JOB, "e1", "w")
    with connection.pubsub(ignore_subscribe_messages=True) as pubsub:
        pubsub.subscribe(keys.EVENTS)
        assert store.progress([(JOB, "e1", 2), ("gone", "e9", 1)]).evict == ["gone"]
        messages = [pubsub.get_message(timeout=1) for _ in range(2)]
    [event] = [json.loads(message["data"]) for message in messages if message]
    assert event == {"kind": "progress", "steps": {JOB: [1, 2]}}
    after = store.get(JOB)
    assert after is not None
    assert after.step == 2
    assert not connection.exists(keys.job("gone"))
    assert store.progress([]) == Wishes()


def test_progress_tells_of_a_cancel_even_if_the_message_was_lost(
    store: JobStore, connection: redis.Redis
) -> None:
    store.start(JOB, "e1", "w")
    connection.hset(keys.job(JOB), "cancel_requested", "1")
    assert store.progress([(JOB, "e1", 2)]).evict == [JOB]
    assert store.finish(JOB, "e1", JobStatus.CANCELED)


def test_progress_tells_which_previews_are_wanted(store: JobStore, connection: redis.Redis) -> None:
    store.start(JOB, "e1", "w")
    assert store.progress([(JOB, "e1", 1)]) == Wishes(evict=[])
    connection.hset(keys.job(JOB), "previews", "3")
    assert store.progress([(JOB, "e1", 1)]) == Wishes(evict=[], previews={JOB: 3})


def test_the_end_is_written_once(store: JobStore, connection: redis.Redis) -> None:
    store.start(JOB, "e1", "w")
    assert store.finish(JOB, "e1", JobStatus.SUCCEEDED, images=[IMAGE], warnings=["cut"])
    done = store.get(JOB)
    assert done is not None
    assert (done.status, done.step, done.images) == (JobStatus.SUCCEEDED, 3, (IMAGE,))
    assert done.warnings == ("cut",)
    assert done.finished_at is not None
    assert done.expires_at == pytest.approx(done.finished_at + 60, abs=1e-3)
    assert 50 < connection.ttl(keys.job(JOB)) <= 60
    assert connection.zscore(keys.IMAGE_EXPIRY, IMAGE.name) == pytest.approx(done.expires_at)
    assert not connection.exists(keys.owner_active("o"))
    assert 50 < connection.ttl(keys.owner_jobs("o")) <= 120
    assert not store.finish(JOB, "e1", JobStatus.FAILED, error=PROBLEM)
    assert store.start(JOB, "e2", "w") is None
    assert store.get(JOB) == done


def test_failure_keeps_its_reason(store: JobStore) -> None:
    store.start(JOB, "e1", "w")
    assert store.finish(JOB, "e1", JobStatus.FAILED, error=PROBLEM)
    done = store.get(JOB)
    assert done is not None
    assert done.error == PROBLEM


def test_a_job_no_worker_holds_can_be_failed(store: JobStore) -> None:
    assert store.finish(JOB, None, JobStatus.FAILED, error=PROBLEM)
    assert not store.finish(JOB, None, JobStatus.FAILED, error=PROBLEM)


def test_requeue_gives_the_job_back(store: JobStore) -> None:
    store.start(JOB, "e1", "w")
    assert store.requeue(JOB, "e1")
    back = store.get(JOB)
    assert back is not None
    assert (back.status, back.execution, back.worker) == (JobStatus.QUEUED, None, None)
    assert not store.requeue(JOB, "e1")
    again = store.start(JOB, "e2", "w")
    assert again is not None
    assert again.attempts == 2


def test_a_canceled_job_does_not_start_again(store: JobStore, connection: redis.Redis) -> None:
    store.start(JOB, "e1", "w")
    connection.hset(keys.job(JOB), "cancel_requested", "1")
    assert store.requeue(JOB, "e1")
    assert store.start(JOB, "e2", "w") is None
    done = store.get(JOB)
    assert done is not None
    assert done.status is JobStatus.CANCELED


@pytest.mark.parametrize("status", [JobStatus.RUNNING, JobStatus.FAILED])
def test_finish_wants_an_end_with_its_reason(store: JobStore, status: JobStatus) -> None:
    with pytest.raises(ValueError, match=status.value if status.terminal else "terminal|should be"):
        store.finish(JOB, "e1", status)


OPERATIONS = st.tuples(st.sampled_from(["start", "finish", "requeue", "cancel"]), st.integers(0, 2))


@given(st.lists(OPERATIONS, max_size=12))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_only_the_holder_changes_a_job_and_the_end_stays(
    connection: redis.Redis, operations: list[tuple[str, int]]
) -> None:
    connection.delete(keys.job(JOB))
    _write(connection)
    store, end = JobStore(connection), None
    for name, number in operations:
        before, execution = store.get(JOB), f"e{number}"
        assert before is not None
        held = before.status is JobStatus.RUNNING and before.execution == execution
        if name == "cancel" and not before.status.terminal:
            connection.hset(keys.job(JOB), "cancel_requested", "1")
        elif name == "start":
            store.start(JOB, execution, "w")
        elif name == "finish":
            assert store.finish(JOB, execution, JobStatus.SUCCEEDED) is held
        elif name == "requeue":
            assert store.requeue(JOB, execution) is held
        after = store.get(JOB)
        assert end is None or after == end
        end = after if after and after.status.terminal else None


SHARES = st.floats(0, 1) | st.sampled_from([step / 9 for step in range(10)])


@given(
    steps=st.integers(1, 60),
    strength=st.none() | st.floats(0.01, 1),
    interval=st.tuples(*2 * [SHARES]),
)
def test_a_job_costs_what_its_rows_ask(
    steps: int, strength: float | None, interval: tuple[float, float]
) -> None:
    changes = {"steps": steps, "strength": strength, "guidance_interval": sorted(interval)}
    request = JobRequest(**{**dict(record().request), **changes})
    asked = range(steps - request.taken, steps)
    assert request.forwards == sum(
        1 + acts(step, steps, request.guidance_interval) for step in asked
    )
