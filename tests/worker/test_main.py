"""`python -m worker`: arguments, start errors, bursts."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
import torch

from app import keys
from app.jobs.record import JobStatus
from app.jobs.store import JobStore
from worker.__main__ import main
from worker.engine import Engine
from worker.runner import Runner
from worker.start import resolve_device

Spawn = Callable[..., Any]


def ended(process: Any) -> int | None:
    process.join(60)
    return process.exitcode


def test_a_burst_draws_what_waits_and_ends(
    jobs: Any, spawn_worker: Spawn, store: JobStore, client: redis.Redis, tmp_path: Path
) -> None:
    waiting = [jobs.submit(priority=name) for name in keys.QUEUES]
    said = tmp_path / "said"
    worker = spawn_worker("--burst", "--device", "cpu", said=said, log_json=True)
    assert ended(worker) == 0
    assert '"event": "worker ready"' in said.read_text()
    assert {store.get(job).status for job in waiting} == {JobStatus.SUCCEEDED}
    assert client.smembers(keys.RQ_WORKERS) == set()


def test_help_needs_no_torch() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "worker", "--help"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--burst" in run.stdout
    assert "torch" not in run.stderr


@pytest.mark.parametrize(
    ("changes", "arguments", "sentence"),
    [
        ({"bundle": "/nowhere"}, [], "worker: no bundle at '/nowhere': it has no bundle.json"),
        ({}, ["--device", "tpu"], "worker: device 'tpu' should be auto, cpu, cuda or cuda:N"),
        ({}, ["--device", "cuda:9"], "worker: device 'cuda:9' is not there: torch sees"),
        ({}, ["--name", "a b"], "worker: --name 'a b' should be letters, digits"),
        ({"redis_url": "http://x"}, [], "worker: AVOCAT_REDIS_URL cannot be read"),
        ({"slots": "none"}, [], "worker: AVOCAT_SLOTS: Input should be a valid integer"),
    ],
)
def test_what_is_wrong_at_the_start_is_one_sentence(
    spawn_worker: Spawn,
    tmp_path: Path,
    changes: dict[str, str],
    arguments: list[str],
    sentence: str,
) -> None:
    said = tmp_path / "said"
    assert ended(spawn_worker(*arguments, said=said, **changes)) == 1
    lines = said.read_text().strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(sentence)


def test_a_damaged_bundle_is_refused(
    spawn_worker: Spawn, tmp_path: Path, bundle_path: Path
) -> None:
    damaged, said = tmp_path / "damaged", tmp_path / "said"
    shutil.copytree(bundle_path, damaged)
    weights = damaged / "denoiser.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert ended(spawn_worker(said=said, bundle=damaged)) == 1
    assert said.read_text().startswith("worker: denoiser.safetensors is damaged: its sha256 is")


def in_this_process(monkeypatch: pytest.MonkeyPatch, redis_url: str, **given: Path) -> None:
    settings = {"redis_url": redis_url, "runtime": "eager", "threads": 1} | given
    for name, value in settings.items():
        monkeypatch.setenv(f"AVOCAT_{name.upper()}", str(value))


def test_memory_that_runs_out_at_the_first_call_is_one_sentence(
    redis_url: str, bundle_path: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def cramped(engine: Engine) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    in_this_process(monkeypatch, redis_url, bundle=bundle_path, data_dir=tmp_path)
    monkeypatch.setattr(Engine, "warm_up", cramped)
    assert main([]) == 1
    said = capsys.readouterr().err
    assert "worker: bundle tiny does not fit: cpu had " in said
    assert "Traceback" not in said


def test_only_metrics_that_are_not_served_are_said_not_to_be(
    redis_url: str, bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(runner: Runner, burst: bool) -> bool:
        raise OSError("something else")

    in_this_process(monkeypatch, redis_url, bundle=bundle_path, data_dir=tmp_path)
    monkeypatch.setattr(Runner, "work", broken)
    with pytest.raises(OSError, match="something else"):
        main([])


def test_a_redis_that_stays_away_is_waited_for_and_named(
    spawn_worker: Spawn, tmp_path: Path
) -> None:
    began, said = time.monotonic(), tmp_path / "said"
    url = f"unix://{tmp_path}/no.sock"
    assert ended(spawn_worker(said=said, redis_url=url)) == 1
    assert 9 < time.monotonic() - began < 30
    assert said.read_text().startswith("worker: Redis did not answer for 10 s: ")


def test_two_live_workers_cannot_have_one_name(
    spawn_worker: Spawn, tmp_path: Path, start_worker: Spawn
) -> None:
    said = tmp_path / "said"
    start_worker()
    assert ended(spawn_worker("--name", "thread-0", said=said)) == 1
    assert "another worker is named 'thread-0'" in said.read_text()


def test_a_signal_before_any_work_ends_it(spawn_worker: Spawn, client: redis.Redis) -> None:
    worker = spawn_worker("--name", "idle")
    while not client.exists("rq:worker:idle"):
        worker.join(0.01)
        assert worker.is_alive()
    os.kill(worker.pid, signal.SIGINT)
    assert ended(worker) == 0
    assert client.smembers(keys.RQ_WORKERS) == set()


def test_auto_is_the_best_device_there_is() -> None:
    expected = "cuda:0" if torch.cuda.is_available() else "cpu"
    assert resolve_device("auto") == torch.device(expected)


def test_devices_are_dealt_by_turns() -> None:
    assert [resolve_device("cpu, cpu", turn) for turn in range(3)] == [torch.device("cpu")] * 3
    with pytest.raises(ValueError, match="'cuda:99' is not there"):
        resolve_device("cpu,cuda:99", 3)


@pytest.mark.parametrize("share", ["2/2", "x/2", "1", "1/0"])
def test_a_share_that_cannot_be_is_refused(share: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--share", share])
    assert "should be I/N" in capsys.readouterr().err
