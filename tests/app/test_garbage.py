"""`avocat gc`: what it removes, and what it never does."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from app import keys
from app.garbage import WrongRedis, collect
from tests.app.service import PNG, Service
from tests.integration.service import avocat


def sweep(service: Service, *, dry_run: bool = False, older_than_s: float = -1.0) -> Any:
    return collect(service.redis, service.storage, older_than_s=older_than_s, dry_run=dry_run)


def store(service: Service, *names: str) -> None:
    for name in names:
        service.storage.write(name, PNG)


async def test_images_of_live_and_kept_jobs_stay(service: Service) -> None:
    kept = [image.name for image in service.draw((await service.submit(n=2))["id"])]
    running = (await service.submit())["id"]
    service.take(running, "execution1")
    waiting = (await service.submit())["id"]
    store(service, f"{running}_executio_0.png")
    # Of executions that were killed before they could say so, and of a job that is gone.
    gone = "01J00000000000000000000000"
    orphans = [f"{running}_00000000_0.png", f"{waiting}_11111111_0.png", f"{gone}_22222222_0.png"]
    store(service, *orphans)
    assert sweep(service, older_than_s=3600).images == []
    assert {image.name for image in sweep(service, dry_run=True).images} == set(orphans)
    assert all(service.storage.exists(name) for name in orphans)
    found = sweep(service)
    assert {image.name for image in found.images} == set(orphans)
    assert found.bytes == 3 * len(PNG)
    assert found.kept_images == 3
    left = {image.name for image in service.storage.files()}
    assert left == {*kept, f"{running}_executio_0.png"}


async def test_an_answer_from_storage_in_the_making_stays(service: Service) -> None:
    service.draw((await service.submit())["id"])
    name = "01J00000000000000000000000_22222222_0.png"
    store(service, name)
    service.redis.zadd(keys.IMAGE_EXPIRY, {name: time.time() + 60})
    assert sweep(service).images == []


async def test_half_written_files_go_but_not_those_being_written(service: Service) -> None:
    folder = service.storage.path("a_b_0.png").parent
    folder.mkdir(parents=True)
    old, young = folder / ".a_b_0.png.0000.tmp", folder / ".a_b_0.png.1111.tmp"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (1, 1))
    assert sweep(service, older_than_s=60).half_written == 1
    assert not old.exists()
    assert young.exists()


async def test_jobs_that_no_queue_holds_end(service: Service) -> None:
    lost, waiting, running = [(await service.submit())["id"] for _ in range(3)]
    service.redis.lrem(keys.rq_queue("normal"), 0, lost)  # as `rq empty` does
    service.redis.delete(keys.rq_job(lost))
    service.take(running, "e1")
    service.redis.zadd(keys.rq_running("normal"), {f"{running}:e1": time.time() + 60})
    assert sweep(service, older_than_s=3600).jobs == []
    assert sweep(service, dry_run=True).jobs == [lost]
    assert (await service.job(lost))["status"] == "queued"
    assert sweep(service).jobs == [lost]
    ended = await service.job(lost)
    assert (ended["status"], ended["error"]["type"]) == ("failed", "/problems/queue-entry-invalid")
    assert (await service.job(waiting))["status"] == "queued"
    assert (await service.job(running))["status"] == "running"
    assert service.redis.scard(keys.owner_active("anonymous")) == 2


async def test_a_redis_that_knows_no_job_removes_nothing(service: Service) -> None:
    store(service, "01J00000000000000000000000_22222222_0.png")
    with pytest.raises(WrongRedis):
        sweep(service)
    assert len(list(service.storage.files())) == 1


async def test_the_command(service: Service, tmp_path: Path) -> None:
    service.draw((await service.submit())["id"])
    store(service, "01J00000000000000000000000_22222222_0.png")
    settings = {"redis_url": service.app.state.services.settings.redis_url, "data_dir": tmp_path}
    ended = avocat("gc", "--dry-run", "--older-than", "0", "--json", **settings)
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    assert told["images"] == ["01J00000000000000000000000_22222222_0.png"]
    assert (told["dry_run"], told["kept_images"]) == (True, 1)
    away = avocat("gc", data_dir=tmp_path / "empty")
    assert away.returncode == 3
    assert "is the service running" in away.stderr
