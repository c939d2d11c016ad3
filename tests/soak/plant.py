"""A whole service as processes that are hurt and started again: Redis, one API, some workers."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Self

from app.embedded_redis import EmbeddedRedis
from tests.integration.service import environment
from tests.soak.cable import Cable
from tests.worker.conftest import FORKSERVER, run_main

DISK_BYTES = 96 << 20
RESTART_S = 0.3


class Plant:
    """`with` starts it in `folder`; whatever dies is started again after a moment."""

    def __init__(
        self,
        folder: Path,
        bundle: Path,
        *,
        workers: int,
        lease_s: int,
        call_s: float = 0.004,
        **settings: str,
    ) -> None:
        """`call_s`: least time of a call of the network; `settings`: more of them, or others."""
        self.folder, self.data = folder, folder / "data"
        self.images = self.data / "images"
        self.redis = EmbeddedRedis(folder / "redis")
        self.settings: dict[str, str | Path] = {
            "data_dir": self.data,
            "bundle": bundle,
            "lease_s": str(lease_s),
            "threads": "1",
            "queue_cap": "200",
            "slots": "8",
            **settings,
        }
        self._call_s = call_s
        self.workers: list[Any] = [None] * workers
        self.names = [""] * workers
        self.api: subprocess.Popen[bytes] | None = None
        self.disk = False  # whether the images lie on a disk of their own
        self.lock = threading.RLock()
        self._births = 0
        self._ending = threading.Event()

    def __enter__(self) -> Self:
        self.images.mkdir(parents=True)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(self.images)]
        self.disk = subprocess.run(mount, capture_output=True, check=False).returncode == 0
        self.redis.start()
        self.cable = Cable(self.folder / "cable.sock", self.redis.socket)
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self._tend()
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()
        return self

    def __exit__(self, *fault: object) -> None:
        self._ending.set()
        self._keeper.join()
        for worker in self.workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGCONT)
                os.kill(worker.pid, signal.SIGKILL)
            worker.join()
        if self.api is not None:
            self.api.kill()
            self.api.wait()
        self.listener.close()
        self.cable.close()
        self.redis.stop()
        if self.disk:
            subprocess.run(["umount", "-l", str(self.images)], check=False)

    def _keep(self) -> None:
        while not self._ending.wait(RESTART_S):
            self._tend()

    def _tend(self) -> None:
        with self.lock:
            if self.api is None or self.api.poll() is not None:
                self._start_api()
            for at, worker in enumerate(self.workers):
                if worker is None or not worker.is_alive():
                    self._start_worker(at)

    def _start_api(self) -> None:
        fd = self.listener.fileno()
        with (self.folder / "api.log").open("ab") as log:
            self.api = subprocess.Popen(
                [sys.executable, "-m", "app.cli", "api", "--fd", str(fd)],
                env=environment(self.settings | {"redis_url": self.redis.url}),
                pass_fds=[fd],
                stdout=log,
                stderr=log,
            )

    def _start_worker(self, at: int) -> None:
        self._births += 1
        self.names[at] = f"w{self._births}"
        values = self.settings | {"redis_url": self.cable.url, "drain_grace_s": "5"}
        variables = {f"AVOCAT_{name.upper()}": str(value) for name, value in values.items()}
        said = self.folder / "workers.log"
        self.workers[at] = FORKSERVER.Process(
            target=run_main, args=(variables, ["--name", self.names[at]], self._call_s, said)
        )
        self.workers[at].start()


def remount(plant: Plant, how: str) -> bool:
    """Make the disk of images `ro` or `rw`; False when that did not go within 5 s."""
    end = time.monotonic() + 5
    while time.monotonic() < end:
        command = ["mount", "-o", f"remount,{how}", str(plant.images)]
        if subprocess.run(command, capture_output=True, check=False).returncode == 0:
            return True
        time.sleep(0.01)  # a file is just being written
    return False


__all__ = ["Plant", "remount"]
