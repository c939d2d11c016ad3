"""The trace of a worker: a file that trace viewers open, with steps, jobs and duties."""

import json
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from app.jobs.record import JobStatus
from tests.worker.conftest import Jobs, wait_for
from worker.__main__ import main
from worker.profile import Profile
from worker.reports import StepReport


def test_a_worker_leaves_a_trace(
    spawn_worker: Callable[..., BaseProcess], jobs: Jobs, tmp_path: Path
) -> None:
    file = tmp_path / "out.json"
    job = jobs.submit(steps=6)
    worker = spawn_worker("--burst", "--profile", str(file), slots=2)
    jobs.ended(job)
    wait_for(lambda: not worker.is_alive())
    events = json.loads(file.read_text("utf-8"))
    assert all({"ph", "pid", "name"} <= event.keys() for event in events)
    steps = [one for one in events if one["name"] == "step"]
    assert len(steps) == 6
    assert [one["args"]["finished"] for one in steps] == [0, 0, 0, 0, 0, 1]
    assert all(one["ph"] == "X" and one["dur"] >= 10_000 for one in steps)  # its network sleeps
    phases = [(one["name"], one["ph"]) for one in events if one.get("id") == job]
    assert phases == [(name, ph) for name in ("encode", "denoise", "store") for ph in "be"]
    begun, ended = (
        next(one["ts"] for one in events if one["name"] == "denoise" and one["ph"] == ph)
        for ph in "be"
    )
    assert all(begun <= one["ts"] <= ended for one in steps)
    assert {"take", "settle"} <= {one["name"] for one in events}


def test_a_full_disk_ends_the_trace_and_nothing_else(
    spawn_worker: Callable[..., BaseProcess], jobs: Jobs, tmp_path: Path
) -> None:
    with capture_logs() as said:
        trace = Profile(Path("/dev/full"))
        for _ in range(999):
            trace.stepped(StepReport(), 0.1)
        trace.close()
    assert [(one["event"], one["reason"]) for one in said] == [
        ("trace ends here", "No space left on device")
    ]
    job = jobs.submit()
    worker = spawn_worker("--burst", "--profile", "/dev/full")
    assert jobs.ended(job).status is JobStatus.SUCCEEDED
    worker.join(60)
    assert worker.exitcode == 0


def test_a_trace_that_cannot_be_written_is_said(
    redis_url: str, bundle_path: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    settings = {"REDIS_URL": redis_url, "BUNDLE": bundle_path, "DATA_DIR": tmp_path}
    for name, value in (settings | {"RUNTIME": "eager", "THREADS": 1}).items():
        monkeypatch.setenv(f"AVOCAT_{name}", str(value))
    assert main(["--profile", str(tmp_path / "no" / "out.json")]) == 1
    assert "cannot be written: No such file or directory" in capsys.readouterr().err
