"""Several models on one worker: loaded for the jobs that ask for them, and no thrashing."""

import json
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis

from app import keys
from app.jobs.connection import connect
from app.jobs.fleet import ModelState, Placement
from app.jobs.fleet_reader import read_fleet
from app.jobs.models import ModelCard
from app.jobs.record import JobStatus
from app.settings import Settings
from models.description import describe_model
from tests.models.tiny import build_tiny_bundle
from tests.worker.conftest import WorkerThread, wait_for
from worker import roster, start
from worker.catalogue import Entry
from worker.resident import Prepared
from worker.start import make_runner

BUDGET_FOR_ONE = 6
Start = Callable[..., WorkerThread]


@pytest.fixture(scope="session")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("second", "third", "fourth"), start=1):
        build_tiny_bundle(folder / name, seed, name=name)
    return folder


@pytest.fixture
def settings(settings: Settings, others: Path, tmp_path: Path) -> Settings:
    """With two models beside the one that workers start with."""
    for name in ("second", "third"):
        shutil.copytree(others / name, tmp_path / "models" / name)
    return settings.model_copy(update={"runtime": "eager", "slots": 2, "micro_batch": 1})


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each model was loaded after the start."""
    counted: Counter[str] = Counter()
    load = start._Shop.load

    def counting(shop: Any, entry: Entry) -> Prepared:
        counted[entry.name] += 1
        return load(shop, entry)

    monkeypatch.setattr(start._Shop, "load", counting)
    return counted


@pytest.fixture
def work(redis_url: str, settings: Settings) -> Iterator[Start]:
    started: list[WorkerThread] = []

    def work(**changes: Any) -> WorkerThread:
        chosen = settings.model_copy(update=changes)
        runner = make_runner(chosen, connect(redis_url), f"w{len(started)}", "cpu")
        started.append(WorkerThread(runner))
        return started[-1]

    yield work
    for worker in started:
        worker.stop()


def placed(client: redis.Redis, model: str, worker: str = "w0") -> Placement | None:
    return read_fleet(client).placements(model).get(worker)


def state(client: redis.Redis, model: str, worker: str = "w0") -> ModelState | None:
    found = placed(client, model, worker)
    return None if found is None else found.state


def card(client: redis.Redis, model: str) -> ModelCard | None:
    text = client.hget(keys.MODELS, model)
    return None if text is None else ModelCard.model_validate_json(text)


def test_a_model_is_loaded_for_its_job_and_stays(
    client: redis.Redis, jobs: Any, work: Start, loads: Counter[str]
) -> None:
    work()
    before = wait_for(lambda: card(client, "second"))
    assert (before.fingerprint, before.is_default) == ("", False)
    assert state(client, "second") is ModelState.AVAILABLE
    ids = [jobs.submit(model=model) for model in ("second", "tiny", "second")]
    assert [jobs.ended(job).status for job in ids] == [JobStatus.SUCCEEDED] * 3
    wait_for(lambda: state(client, "second") is ModelState.LOADED)
    assert state(client, "tiny") is ModelState.LOADED  # memory has room for both
    after = wait_for(lambda: (c := card(client, "second")) and c.fingerprint and c)
    unknown = {"fingerprint": "", "runtime": "", "forward_ms": None, "difference": None}
    assert before.model_copy(update=unknown) == after.model_copy(update=unknown)
    assert loads == {"second": 1}


def test_its_pictures_are_those_of_a_worker_of_its_own(
    client: redis.Redis, jobs: Any, work: Start, settings: Settings
) -> None:
    work()
    beside = [jobs.submit(model=model, seed=5) for model in ("tiny", "second", "tiny")]
    [first, second, _] = [jobs.ended(job).images[0].sha256 for job in beside]
    assert first != second
    client.flushall()
    work(bundle=settings.models_dir / "second", data_dir=settings.data_dir / "other")
    alone = jobs.ended(jobs.submit(model="second", seed=5))
    assert alone.images[0].sha256 == second


def test_models_that_do_not_fit_together_do_not_chase_each_other_out(
    client: redis.Redis, jobs: Any, work: Start, loads: Counter[str]
) -> None:
    work(model_memory_mb=BUDGET_FOR_ONE)
    ids = [jobs.submit(model=model) for _ in range(10) for model in ("tiny", "second")]
    assert {jobs.ended(job).status for job in ids} == {JobStatus.SUCCEEDED}
    assert loads["second"] == 1
    assert loads["tiny"] <= 1
    states = {model: state(client, model) for model in ("tiny", "second")}
    assert set(states.values()) == {ModelState.LOADED, ModelState.AVAILABLE}


def test_a_model_waits_for_another_one_at_most_its_patience(
    client: redis.Redis, jobs: Any, work: Start, loads: Counter[str]
) -> None:
    """Jobs of the loaded model never end, and yet the other one is drawn; then it goes back."""
    work(model_memory_mb=BUDGET_FOR_ONE, model_patience_s=1.5)
    fed: list[str] = []
    stop = threading.Event()

    def feed() -> None:
        while not stop.is_set():
            if client.llen(keys.rq_queue("normal")) < 4:
                fed.append(jobs.submit(steps=3))
            time.sleep(0.005)

    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        wait_for(lambda: len(fed) > 8)
        began, other = time.monotonic(), jobs.submit(model="second")
        assert jobs.ended(other).status is JobStatus.SUCCEEDED
        assert time.monotonic() - began >= 1.4  # it did not push in either
        length = len(fed)
        wait_for(lambda: len(fed) > length + 8)
    finally:
        stop.set()
        feeder.join()
    assert {jobs.ended(job).status for job in fed} == {JobStatus.SUCCEEDED}
    assert loads["second"] == 1
    assert loads["tiny"] == 1


def test_the_one_used_longest_ago_leaves(
    client: redis.Redis, jobs: Any, work: Start, settings: Settings
) -> None:
    size = describe_model(settings.bundle).weights_bytes
    assert 3e6 < size < 6e6
    work(model_memory_mb=int(2.5 * size / 1e6))
    for model in ("second", "tiny", "third"):
        assert jobs.ended(jobs.submit(model=model)).status is JobStatus.SUCCEEDED
    assert state(client, "second") is ModelState.AVAILABLE
    assert {state(client, model) for model in ("tiny", "third")} == {ModelState.LOADED}


def test_a_damaged_model_fails_its_own_jobs_only(
    client: redis.Redis, jobs: Any, work: Start, settings: Settings
) -> None:
    file = settings.models_dir / "second" / "denoiser.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    work()
    record = jobs.ended(jobs.submit(model="second"))
    assert record.error is not None
    assert record.error.type == "/problems/model-not-loaded"
    assert "denoiser.safetensors is damaged: its sha256 is" in record.error.detail
    found = wait_for(lambda: (p := placed(client, "second")) and p.state == "failed" and p)
    assert "is damaged" in found.detail
    assert jobs.ended(jobs.submit()).status is JobStatus.SUCCEEDED


@pytest.fixture
def large(settings: Settings) -> None:
    """Make the second model too large for that budget."""
    build_tiny_bundle(settings.models_dir / "second", 1, name="second", width=64)


@pytest.mark.usefixtures("large")
def test_what_is_too_large_is_refused_with_both_sizes(
    client: redis.Redis, jobs: Any, work: Start
) -> None:
    work(model_memory_mb=BUDGET_FOR_ONE)
    error = jobs.ended(jobs.submit(model="second")).error
    assert error is not None
    assert "not enough memory: 'second' has 10." in error.detail
    assert "room for 6.0 MB of models (AVOCAT_MODEL_MEMORY_MB)" in error.detail
    assert jobs.ended(jobs.submit()).status is JobStatus.SUCCEEDED  # what it was started with


def test_models_come_and_go_while_the_worker_runs(
    client: redis.Redis, jobs: Any, work: Start, settings: Settings, others: Path
) -> None:
    work()
    shutil.copytree(others / "fourth", settings.models_dir / "fourth")
    wait_for(lambda: card(client, "fourth"))
    assert jobs.ended(jobs.submit(model="fourth")).status is JobStatus.SUCCEEDED
    (settings.models_dir / "fourth" / "bundle.json").unlink()
    wait_for(lambda: card(client, "fourth") is None)
    assert state(client, "fourth") is None
    error = jobs.ended(jobs.submit(model="fourth")).error
    assert error is not None
    assert error.type == "/problems/model-not-served"


def test_a_model_that_was_changed_is_loaded_anew(
    client: redis.Redis, jobs: Any, work: Start, settings: Settings
) -> None:
    work()
    first = jobs.ended(jobs.submit(model="second", seed=1)).images[0].sha256
    before = card(client, "second")
    build_tiny_bundle(settings.models_dir / "second", 77, name="second")
    wait_for(lambda: (c := card(client, "second")) and c.bundle_sha256 != before.bundle_sha256)  # type: ignore[union-attr]
    assert jobs.ended(jobs.submit(model="second", seed=1)).images[0].sha256 != first


def test_of_two_idle_workers_one_loads(
    jobs: Any, work: Start, loads: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roster, "_HELP_S", 1000.0)  # however slow the machine is
    work()
    work()
    ids = [jobs.submit(model="second") for _ in range(6)]
    assert {jobs.ended(job).status for job in ids} == {JobStatus.SUCCEEDED}
    assert loads == {"second": 1}


@pytest.mark.usefixtures("large")
def test_what_one_worker_cannot_load_another_may(
    client: redis.Redis, jobs: Any, work: Start
) -> None:
    work(model_memory_mb=BUDGET_FOR_ONE)
    wait_for(lambda: state(client, "second"))
    work()
    ids = [jobs.submit(model="second") for _ in range(4)]
    assert {jobs.ended(job).status for job in ids} == {JobStatus.SUCCEEDED}
    assert state(client, "second", "w1") is ModelState.LOADED


def test_what_redis_forgot_is_told_again(client: redis.Redis, work: Start) -> None:
    work()
    wait_for(lambda: card(client, "second"))
    client.flushall()
    wait_for(lambda: card(client, "second") and card(client, "tiny"))
    wait_for(lambda: state(client, "second") is ModelState.AVAILABLE)


def told(client: redis.Redis, command: str, model: str) -> None:
    text = json.dumps({"command": command, "model": model})
    wait_for(lambda: client.publish(keys.rq_commands("w0"), text))


def test_operators_load_and_unload(client: redis.Redis, jobs: Any, work: Start) -> None:
    tell = partial(told, client)
    work(model_memory_mb=BUDGET_FOR_ONE)
    tell("load-model", "second")
    wait_for(lambda: state(client, "second") is ModelState.LOADED)
    assert state(client, "tiny") is ModelState.AVAILABLE  # it left for it
    tell("unload-model", "second")
    wait_for(lambda: state(client, "second") is ModelState.AVAILABLE)
    assert jobs.ended(jobs.submit()).status is JobStatus.SUCCEEDED  # from nothing loaded at all
    tell("load-model", "nothing")
    tell("unload-model", "nothing")
    assert jobs.ended(jobs.submit()).status is JobStatus.SUCCEEDED


def test_what_is_loaded_again_while_it_leaves_stays(
    client: redis.Redis, jobs: Any, work: Start, loads: Counter[str]
) -> None:
    work()
    job = jobs.submit(steps=1000, n=4)
    jobs.running(job)
    told(client, "unload-model", "tiny")
    wait_for(lambda: state(client, "tiny") is ModelState.LEAVING)
    told(client, "load-model", "tiny")
    wait_for(lambda: state(client, "tiny") is ModelState.LOADED)
    assert jobs.ended(job).status is JobStatus.SUCCEEDED
    assert (state(client, "tiny"), loads["tiny"]) == (ModelState.LOADED, 0)


def test_what_is_unloaded_while_it_is_loaded_leaves(
    client: redis.Redis, work: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, load = threading.Event(), start._Shop.load

    def slow(shop: Any, entry: Entry) -> Prepared:
        go_on.wait(30)
        return load(shop, entry)

    monkeypatch.setattr(start._Shop, "load", slow)
    work()
    told(client, "load-model", "second")
    wait_for(lambda: state(client, "second") is ModelState.LOADING)
    told(client, "unload-model", "second")
    told(client, "load-model", "third")  # heard after that
    time.sleep(0.5)
    go_on.set()
    wait_for(lambda: state(client, "third") is ModelState.LOADED)
    assert state(client, "second") is ModelState.AVAILABLE


@pytest.mark.filterwarnings("ignore")
def test_an_imported_pipeline_is_drawn_with_beside_the_bundle(
    client: redis.Redis, jobs: Any, work: Start, settings: Settings, tmp_path: Path
) -> None:
    from models.stable_diffusion.loading import import_folder
    from tests.models.tiny_diffusers import build_pipeline

    source = build_pipeline(tmp_path / "stable-diffusion", "sd1")
    import_folder(source, settings.models_dir / "sd", "sd")
    work()
    before = wait_for(lambda: placed(client, "sd"))
    assert (before.state, before.source) == (ModelState.AVAILABLE, str(source))
    assert wait_for(lambda: card(client, "sd")).lcm_steps == 50
    asked = {"model": "sd", "size": "64x64", "background": "white", "steps": 3}
    ids = [jobs.submit(**asked), jobs.submit(), jobs.submit(**asked, best_of=2)]
    ended = [jobs.ended(job, 300) for job in ids]
    assert {job.status for job in ended} == {JobStatus.SUCCEEDED}
    unjudged = ("best_of: the model's CLIP sees no pictures, so the first candidates were kept",)
    assert [job.warnings for job in ended] == [(), (), unjudged]
    assert {state(client, model) for model in ("sd", "tiny")} == {ModelState.LOADED}
