"""`avocat serve --workers 2`: two real workers on one queue, each started again if it dies."""

import signal
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from redis import Redis

from app.commands.serve import worker_parts
from app.settings import Settings
from app.supervisor import ProcessPart
from tests.integration.service import Service, wait_until
from tests.models.tiny import build_tiny_bundle


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("pair")
    bundle = build_tiny_bundle(folder / "bundle")
    with Service(folder / "data", bundle, workers="2", lease_s="3") as service:
        wait_until(lambda: len(registered(service)) == 2, 60, "the second worker's registration")
        yield service


def redis_of(service: Service) -> Redis:
    return Redis(unix_socket_path=f"{service.settings['data_dir']}/redis/redis.sock")


def registered(service: Service) -> set[bytes]:
    with redis_of(service) as redis:
        return {name for name in redis.smembers("rq:workers") if redis.exists(name)}


def processes(service: Service) -> list[psutil.Process]:
    children = psutil.Process(service.process.pid).children(recursive=True)
    alive = [one for one in children if one.is_running() and one.status() != "zombie"]
    return [one for one in alive if "-m worker" in words(one)]


def words(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has just ended
        return ""


def drawn(service: Service, count: int) -> list[dict[str, Any]]:
    fields = {"steps": 20, "cache": False, "seed": 7}
    made = [service.submit("a red apple", **fields) for _ in range(count)]
    return [service.finished(job["id"]) for job in made]


def test_both_work_and_draw_the_same(pair: Service) -> None:
    sums: set[str] = set()
    workers: set[bytes | None] = set()

    def both() -> bool:
        jobs = drawn(pair, 12)
        sums.update(image["sha256"] for job in jobs for image in job["images"])
        with redis_of(pair) as redis:
            workers.update(redis.hget(f"avocat:job:{job['id']}", "worker") for job in jobs)
        return len(workers) == 2

    wait_until(both, 90, "work of both")
    assert len(sums) == 1


def test_each_is_started_again(pair: Service) -> None:
    before = processes(pair)
    assert len(before) == 2
    before[0].send_signal(signal.SIGKILL)
    wait_until(lambda: before[0].pid not in {one.pid for one in processes(pair)}, 30, "the end")
    assert {job["status"] for job in drawn(pair, 4)} == {"succeeded"}  # the other goes on
    wait_until(lambda: len(processes(pair)) == 2, 60, "the restart")
    assert before[1].is_running()


def test_each_has_its_turn_and_its_port() -> None:
    parts = worker_parts(Settings(workers=3, worker_metrics_port=9100), {"A": "b"})
    assert all(isinstance(part, ProcessPart) for part in parts)
    told = [(one.name, list(one.argv[-2:]), one.environment) for one in parts]  # type: ignore[attr-defined]
    assert told == [
        (f"worker {turn + 1}", ["--share", f"{turn}/3"],
         {"A": "b", "AVOCAT_WORKER_METRICS_PORT": str(9100 + turn)})
        for turn in range(3)
    ]  # fmt: skip
    [alone] = worker_parts(Settings(), {})
    assert alone.name == "worker"
