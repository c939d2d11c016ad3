"""What a worker counts while it draws, and where that is read."""

import socket
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from models.bundle import Bundle
from tests.worker.conftest import wait_for
from tests.worker.parts import FullDisk, broken_for, slowed
from worker.device_use import DeviceUse
from worker.metrics import Metrics

Start = Callable[..., Any]
Spawn = Callable[..., Any]


def figure(text: str, name: str, **labels: str) -> float | None:
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return float(sample.value)
    return None


def counted(metrics: Metrics, name: str, **labels: str) -> float | None:
    return figure(generate_latest(metrics.registry).decode(), name, **labels)


def test_jobs_and_steps_are_counted(jobs: Any, start_worker: Start) -> None:
    metrics = start_worker(slots=4, micro_batch=2).runner.metrics
    jobs.ended(jobs.submit(n=3, steps=5, guidance_scale=1.0, priority="low"))
    wait_for(lambda: counted(metrics, "avocat_images_total") == 3)
    assert counted(metrics, "avocat_jobs_ended_total", status="succeeded") == 1
    assert counted(metrics, "avocat_engine_step_seconds_count") == 8
    assert counted(metrics, "avocat_engine_rows_total") == 15
    # Three rows by turns in full micro-batches of two; the last row is alone.
    assert counted(metrics, "avocat_engine_calls_total") == 8
    assert counted(metrics, "avocat_engine_occupancy_ratio_bucket", le="0.375") == 1
    assert counted(metrics, "avocat_engine_occupancy_ratio_bucket", le="0.5") == 8
    assert counted(metrics, "avocat_engine_rows_in_flight") == 0
    assert counted(metrics, "avocat_engine_slots") == 4
    for name in ("avocat_queue_wait_seconds", "avocat_job_seconds"):
        assert counted(metrics, f"{name}_count", priority="low") == 1
        assert counted(metrics, f"{name}_count", priority="high") == 0
    for phase in ("encode", "denoise", "store"):
        assert counted(metrics, "avocat_job_phase_seconds_count", phase=phase) == 1


def test_failures_are_counted_by_reason(
    jobs: Any, start_worker: Start, shared_bundle: Bundle, tmp_path: Path
) -> None:
    bundle = broken_for(slowed(shared_bundle, 0.02), "broken")
    worker = start_worker(
        bundle=bundle, storage=FullDisk(tmp_path, times=99, at=1), storage_patience_s=0
    )
    metrics = worker.runner.metrics
    running = jobs.submit(steps=200, sampler="ddpm")
    jobs.running(running)
    jobs.cancel(running)
    ended = [jobs.submit(prompt="broken"), jobs.submit(size="1x1"), jobs.submit(n=2), running]
    for job in ended:
        jobs.ended(job)
    reasons = {"generation-failed": 1, "invalid-job": 1, "storage-failed": 1, "worker-lost": 0}
    for reason, count in reasons.items():
        assert counted(metrics, "avocat_jobs_failed_total", reason=reason) == count
    assert counted(metrics, "avocat_jobs_ended_total", status="failed") == 3
    assert counted(metrics, "avocat_jobs_ended_total", status="canceled") == 1
    assert counted(metrics, "avocat_images_total") == 0


def test_a_second_attempt_is_no_longer_wait(
    jobs: Any, start_worker: Start, shared_bundle: Bundle, tmp_path: Path
) -> None:
    metrics = start_worker(storage=FullDisk(tmp_path, times=1), storage_patience_s=0).runner.metrics
    assert jobs.ended(jobs.submit()).attempts == 2
    wait_for(lambda: counted(metrics, "avocat_images_total") == 1)
    assert counted(metrics, "avocat_queue_wait_seconds_count", priority="normal") == 1
    assert counted(metrics, "avocat_job_seconds_count", priority="normal") == 1


def test_a_port_of_its_own_and_what_a_taken_one_is_answered_with(
    jobs: Any, spawn_worker: Spawn, tmp_path: Path
) -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
        said = tmp_path / "said"
        late = spawn_worker(worker_metrics_port=port, said=said)
        late.join(60)
        assert late.exitcode == 1
        assert f"metrics cannot be served at 127.0.0.1:{port}" in said.read_text()
    spawn_worker(worker_metrics_port=port)
    jobs.ended(jobs.submit(prompt="a secret prompt"))

    def text() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            return str(answer.read().decode())

    wait_for(lambda: figure(text(), "avocat_images_total") == 1)
    assert figure(text(), "process_resident_memory_bytes")
    assert (figure(text(), "avocat_device_memory_bytes", device="cpu", kind="allocated") or 0) > 0
    assert "secret" not in text()


def test_use_of_the_processor() -> None:
    use = DeviceUse(torch.device("cpu"), 1)
    wait_for(lambda: sum(range(100_000)) and (use.utilization() or 0) > 0)
    memory = use.memory_bytes()
    assert 0 < memory["allocated"] < memory["used"] < memory["total"]
    assert memory["allocated"] > 50 * 2**20  # torch alone is more


@pytest.mark.gpu
def test_use_of_a_gpu() -> None:
    held = torch.zeros(64, 2**20, device="cuda")
    memory = DeviceUse(torch.device("cuda:0"), 1).memory_bytes()
    assert held.nbytes <= memory["allocated"] <= memory["used"] <= memory["total"]
