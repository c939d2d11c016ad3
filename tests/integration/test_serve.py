"""`avocat serve` as a whole: start, stop, kill, and start again in the same folder."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.service import Service, avocat, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("serve") / "data"


@pytest.fixture(scope="module")
def stopped(data_dir: Path, tiny_bundle: Path) -> tuple[Service, dict[str, object], bytes]:
    """A service that drew one picture and was stopped; that job and picture."""
    with Service(data_dir, tiny_bundle) as service:
        job = service.finished(service.submit("a red apple", seed=1)["id"])
        [picture] = service.pictures(job)
        assert service.stop() == 0, service.log
    return service, job, picture


@pytest.fixture(scope="module")
def again(
    stopped: tuple[Service, dict[str, object], bytes], data_dir: Path, tiny_bundle: Path
) -> Iterator[Service]:
    """The second service in the same folder."""
    with Service(data_dir, tiny_bundle) as service:
        yield service


def test_stop_leaves_no_process_and_no_socket(
    stopped: tuple[Service, dict[str, object], bytes], data_dir: Path
) -> None:
    service, _, _ = stopped
    assert len(service.parts) == 3
    assert service.survivors() == []
    assert [path for path in data_dir.rglob("*") if path.is_socket()] == []


def test_second_start_keeps_jobs_and_images(
    again: Service, stopped: tuple[Service, dict[str, object], bytes]
) -> None:
    _, before, picture = stopped
    job = again.job(str(before["id"]))
    assert {name: job[name] for name in ("status", "request", "finished_at")} == {
        name: before[name] for name in ("status", "request", "finished_at")
    }
    assert again.pictures(job) == [picture]


def test_metrics_of_the_worker_come_through_the_api(again: Service) -> None:
    again.finished(again.submit("a red apple", seed=2, n=2)["id"])

    def told(line: str) -> bool:
        return line in again.http.get("/metrics").text.splitlines()

    images = "avocat_images_total 2.0"  # those of the run before are not among them
    wait_until(lambda: told(images), 20, "the images are counted")
    assert told('avocat_jobs_ended_total{status="succeeded"} 1.0')
    assert told("avocat_engine_slots 8.0")
    assert told("avocat_workers 1.0")


def test_concurrent_start_in_the_same_folder_is_refused(again: Service, data_dir: Path) -> None:
    second = avocat("serve", data_dir=data_dir, bundle=again.settings["bundle"], port="0")
    assert second.returncode == 1
    assert second.stderr.startswith("avocat: another avocat serve is running in the data folder")


def test_killed_worker_is_started_again_and_its_job_ends(again: Service) -> None:
    worker = again.part("-m worker")
    job = again.submit("a slow star", steps=1000, sampler="ddpm")
    wait_until(lambda: again.job(job["id"])["status"] == "running", 60, "the start of the job")
    worker.kill()
    ended = again.finished(job["id"], deadline_s=120)
    assert ended["status"] == "succeeded"
    assert ended["attempts"] == 2
    assert "avocat_engine_slots 8.0\n" in again.http.get("/metrics").text  # the dead one's are gone


def test_killed_api_is_started_again(again: Service) -> None:
    api = again.part("app.cli api")
    api.kill()
    api.wait(10)
    assert again.http.get("/healthz", timeout=60).status_code == 200  # waits in the listener
    assert again.part("app.cli api").pid != api.pid


def test_killed_redis_is_started_again_with_its_jobs(again: Service) -> None:
    job = again.finished(again.submit("a blue star")["id"])
    again.part("redis-server").kill()
    wait_until(lambda: again.http.get("/readyz").status_code == 200, 30, "readiness")
    assert again.job(job["id"])["status"] == "succeeded"
    assert again.finished(again.submit("a green star")["id"])["status"] == "succeeded"


def test_killed_supervisor_leaves_nothing_and_the_next_one_starts(
    data_dir: Path, tiny_bundle: Path, again: Service
) -> None:
    again.parts = [again.part(word) for word in ("-m worker", "app.cli api", "redis-server")]
    again.stop(signal.SIGKILL)
    wait_until(lambda: again.survivors() == [], 15, "the end of all parts")
    with Service(data_dir, tiny_bundle) as service:
        assert service.http.get("/v1/jobs").json()["data"] != []


def test_damaged_bundle_ends_with_the_fault(tmp_path: Path, tiny_bundle: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "bundle.json").write_text("{")
    ended = avocat(
        "serve", data_dir=tmp_path / "data", bundle=tmp_path / "bundle", port="0", timeout_s=240
    )
    assert ended.returncode != 0
    assert "bundle.json" in ended.stderr
    assert "Traceback" not in ended.stderr
