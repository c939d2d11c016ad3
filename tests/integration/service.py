"""A real `avocat serve` for tests: started, spoken to over HTTP, and looked at from outside."""

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import httpx
import psutil

START_DEADLINE_S = 240.0
JOB_DEADLINE_S = 90.0
AVOCAT = (sys.executable, "-m", "app.cli")


def wait_until(condition: Callable[[], bool], deadline_s: float, what: str) -> None:
    """Wait for a condition; raises TimeoutError naming `what` when the deadline has passed."""
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what} did not happen within {deadline_s:.0f} s")
        time.sleep(0.05)


def avocat(
    *arguments: str, timeout_s: float = 120.0, **settings: str | Path
) -> subprocess.CompletedProcess[str]:
    """Run `avocat arguments…` to its end."""
    return subprocess.run(
        [*AVOCAT, *arguments],
        env=environment(settings),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def environment(settings: dict[str, str | Path]) -> dict[str, str]:
    """This process's environment with these settings as AVOCAT_*; nothing to measure at start."""
    given = {f"AVOCAT_{name.upper()}": str(value) for name, value in settings.items()}
    usual = {"AVOCAT_THREADS": "1", "OMP_NUM_THREADS": "1", "AVOCAT_RUNTIME": "eager"}
    return os.environ | usual | given


class Service:
    """One running service; `with` starts it on a free port and stops it."""

    def __init__(self, data_dir: Path, bundle: Path, **settings: str | Path) -> None:
        self.settings = {"data_dir": data_dir, "bundle": bundle, "port": "0"} | settings
        self.log_file = data_dir.with_name(data_dir.name + ".log")
        self.parts: list[psutil.Process] = []

    def __enter__(self) -> Self:
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [*AVOCAT, "serve", "--json"],
                env=environment(self.settings),
                stdout=subprocess.PIPE,
                stderr=log,
            )
        try:
            self.url = self._ready_url()
        except BaseException:
            self.stop()
            raise
        self.parts = psutil.Process(self.process.pid).children(recursive=True)
        self.http = httpx.Client(base_url=self.url, timeout=60.0)
        return self

    def __exit__(self, *fault: object) -> None:
        self.http.close()
        self.stop()

    def _ready_url(self) -> str:
        if self.process.stdout is None:
            raise ValueError("stdout must be a pipe")
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            found = selector.select(timeout=START_DEADLINE_S)
        line = self.process.stdout.readline() if found else b""
        if not line:
            raise RuntimeError(f"the service did not start:\n{self.log}")
        return str(json.loads(line)["url"])

    @property
    def log(self) -> str:
        """What the parts said so far."""
        return self.log_file.read_text(errors="replace")

    def part(self, word: str) -> psutil.Process:
        """The live part whose command line has this word."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return next(child for child in children if word in " ".join(child.cmdline()))

    def stop(self, signum: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal to the supervisor and wait for its end; returns its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signum)
        code = self.process.wait(timeout=60)
        if self.process.stdout is not None:
            self.process.stdout.close()
        return code

    def survivors(self) -> list[str]:
        """Command lines of parts that still run."""
        alive = [part for part in self.parts if part.is_running()]
        return [" ".join(part.cmdline()) for part in alive if part.status() != "zombie"]

    def submit(self, prompt: str, **fields: Any) -> dict[str, Any]:
        """Submit a job that must be accepted."""
        response = self.http.post("/v1/jobs", json={"prompt": prompt} | fields)
        assert response.status_code == 202, response.text
        return dict(response.json())

    def job(self, job_id: str) -> dict[str, Any]:
        """A job as it is now."""
        response = self.http.get(f"/v1/jobs/{job_id}")
        assert response.status_code == 200, response.text
        return dict(response.json())

    def finished(self, job_id: str, deadline_s: float = JOB_DEADLINE_S) -> dict[str, Any]:
        """The job once it is terminal."""
        wait_until(
            lambda: self.job(job_id)["finished_at"] is not None, deadline_s, f"the end of {job_id}"
        )
        return self.job(job_id)

    def pictures(self, job: dict[str, Any]) -> list[bytes]:
        """The bytes of a succeeded job's images."""
        assert job["status"] == "succeeded", job
        return [self.http.get(image["url"]).raise_for_status().content for image in job["images"]]
