"""A whole service for one command: a free port, a temporary data folder, gone afterwards."""

import contextlib
import json
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

from rich.console import Console

from app.commands.console import ExitCode, fail
from app.commands.programs import environment, program
from app.embedded_redis import tied_to_parent

__all__ = ["own_service"]

START_DEADLINE_S = 300.0
# A service of one's own needs no key, and no Redis that others use.
NOT_PASSED_ON = ("AVOCAT_API_KEYS", "AVOCAT_REDIS_URL", "AVOCAT_HOST", "AVOCAT_PORT")


@contextlib.contextmanager
def own_service() -> Iterator[str]:
    """Start `avocat serve` and yield its URL; stops it, and leaves nothing, on the way out."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # not under nohup
            signal.signal(number, _leave)
    with tempfile.TemporaryDirectory(prefix="avocat-") as folder:
        log = Path(folder) / "serve.log"
        with log.open("wb") as errors:
            process = _start(Path(folder) / "data", errors.fileno())
        try:
            with Console(stderr=True).status("Starting Redis, the API and the model …"):
                url = _wait_until_ready(process, log)
            yield url
        finally:
            process.terminate()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def _leave(number: int, _: FrameType | None) -> NoReturn:
    """End by way of every `finally`, where the signal itself would skip them."""
    raise SystemExit(128 + number)


def _start(data_dir: Path, errors: int) -> subprocess.Popen[bytes]:
    variables = {name: value for name, value in environment().items() if name not in NOT_PASSED_ON}
    return subprocess.Popen(
        program("app.cli", "serve", "--json", "--port", "0", "--data-dir", str(data_dir)),
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=errors,
        start_new_session=True,  # Ctrl-C ends the job first, then the service
        preexec_fn=tied_to_parent(signal.SIGTERM),
    )


def _wait_until_ready(process: subprocess.Popen[bytes], log: Path) -> str:
    """The service's URL, from its one line on stdout."""
    if process.stdout is None:
        raise ValueError("the service's stdout must be a pipe")
    deadline = time.monotonic() + START_DEADLINE_S
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while time.monotonic() < deadline:
            if not selector.select(timeout=1.0):
                continue
            line = process.stdout.readline()
            if not line:
                fail(_why(log))
            if line.startswith(b"{") and json.loads(line).get("event") == "ready":
                return str(json.loads(line)["url"])
    fail(f"the service was not ready within {START_DEADLINE_S:.0f} s", ExitCode.UNREACHABLE)


def _why(log: Path) -> str:
    """What the parts said before the service ended."""
    lines = log.read_text(errors="replace").splitlines()
    said = [line.partition(": ")[2] for line in lines if line.startswith(("avocat: ", "worker: "))]
    return "; ".join(said) or (lines[-1] if lines else "the service ended without a word")
