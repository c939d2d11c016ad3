"""What a worker counts while it draws, and where that is read."""

import socket
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest
import torch
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from models.bundle import Bundle
from tests.worker.conftest import wait_for
from tests.worker.parts import FullDisk, broken_for, slowed
from worker.device_use import DeviceUse
from worker.mail import Shrunk
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
    assert counted(metrics, "avocat_engine_occupancy_ratio_bucket", le="0.5") == 1
    assert counted(metrics, "avocat_engine_occupancy_ratio_bucket", le="1.0") == 8
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


def test_rows_that_were_evicted_are_in_flight_no_more(
    jobs: Any, start_worker: Start, shared_bundle: Bundle
) -> None:
    metrics = start_worker(bundle=slowed(shared_bundle, 0.02)).runner.metrics
    job = jobs.submit(steps=900, n=2)
    jobs.running(job)
    assert counted(metrics, "avocat_engine_rows_in_flight") == 2
    jobs.cancel(job)
    wait_for(lambda: counted(metrics, "avocat_engine_rows_in_flight") == 0)


def test_memory_that_ran_out_of_an_unloaded_model_changes_nothing(
    jobs: Any, start_worker: Start
) -> None:
    runner = start_worker(slots=4).runner
    runner._mail.put(Shrunk(2, 1, 1, "gone"))
    jobs.ended(jobs.submit())
    assert counted(runner.metrics, "avocat_engine_slots") == 4


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


def test_use_of_a_gpu_is_asked_of_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the driver is real: which GPU torch asks NVIDIA's library about, and the share."""
    shares = {5: 40, 3: 75}  # of a machine's GPUs, of which this worker sees two
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,3")
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda index: index)
    monkeypatch.setattr(
        pynvml, "nvmlDeviceGetUtilizationRates", lambda gpu: SimpleNamespace(gpu=shares[gpu])
    )
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (30, 80))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 45)
    metrics = Metrics(4, torch.device("cuda:1"), 1)
    metrics.look(0.0, drawing=())
    told = {"used": 50, "total": 80, "allocated": 45}
    for kind, size in told.items():
        assert counted(metrics, "avocat_device_memory_bytes", device="cuda:1", kind=kind) == size
    assert counted(metrics, "avocat_device_utilization_ratio", device="cuda:1") == 0.75


def test_a_driver_that_does_not_count_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse() -> None:
        asked.append(1)
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    monkeypatch.setattr(pynvml, "nvmlInit", refuse)
    use = DeviceUse(torch.device("cuda:0"), 1)
    assert [use.utilization(), use.utilization()] == [None, None]
    assert len(asked) == 1


@pytest.mark.gpu
def test_use_of_a_gpu() -> None:
    held = torch.zeros(64, 2**20, device="cuda")
    memory = DeviceUse(torch.device("cuda:0"), 1).memory_bytes()
    assert held.nbytes <= memory["allocated"] <= memory["used"] <= memory["total"]
