"""What can happen to a service, at moments and in an order that a seed decides."""

import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx
import redis

from app.storage.folder import FolderStorage
from tests.soak.load import Load, digest
from tests.soak.plant import Plant, remount


class Faults:
    """Does one fault after another; counts them, and what they show."""

    def __init__(self, plant: Plant, load: Load, seed: int, lease_s: int) -> None:
        self._plant, self._load, self._lease_s = plant, load, lease_s
        self._random = random.Random(seed)
        self.done: Counter[str] = Counter()
        self.recoveries_s: list[float] = []
        self.violations: list[str] = []
        self._later: list[threading.Thread] = []
        self._kinds: list[Callable[[], bool]] = [
            *(self.kill_worker, self.kill_worker, self.kill_api, self.kill_redis),
            *(self.stop_worker, self.cut_cable, self.kill_connections),
            *(self.fill_disk, self.unwritable, self.corrupt),
        ]
        self._bag: list[Callable[[], bool]] = []

    def one(self) -> None:
        """The next fault; every kind comes once before any comes again."""
        if not self._bag:
            self._bag = self._random.sample(self._kinds, len(self._kinds))
        kind = self._bag.pop()
        if kind():
            self.done[kind.__name__] += 1

    def wait(self) -> None:
        """Until all that was stopped goes on again and all recoveries were seen."""
        for thread in self._later:
            thread.join()

    def _wait(self, longest_s: float) -> None:
        time.sleep(self._random.uniform(0.05, longest_s))

    def _after(self, work: Callable[[], None]) -> None:
        self._later.append(threading.Thread(target=work, daemon=True))
        self._later[-1].start()

    def kill_worker(self) -> bool:
        """SIGKILL; the jobs it held are watched until another has them."""
        at = self._random.randrange(len(self._plant.workers))
        with self._plant.lock:
            held = self._load.held_by(self._plant.names[at])
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._plant.workers[at].pid, signal.SIGKILL)
        killed_at = time.monotonic()
        self._after(lambda: self._watch_recovery(held, killed_at))
        return True

    def _watch_recovery(self, held: dict[str, bytes], killed_at: float) -> None:
        for job_id, execution in held.items():
            if self._load.wait_until_taken(job_id, execution, 90):
                self.recoveries_s.append(time.monotonic() - killed_at)
            else:
                self.violations.append(f"{job_id} of a killed worker was not taken within 90 s")

    def kill_api(self) -> bool:
        """SIGKILL; it is started again."""
        with self._plant.lock:
            if self._plant.api is not None:
                self._plant.api.kill()
        return True

    def kill_redis(self) -> bool:
        """SIGKILL, and a start with the append-only file it had."""
        process = self._plant.redis.process
        if process is not None:
            process.kill()
            process.wait()
        self._wait(1.0)
        self._plant.redis.start()
        return True

    def stop_worker(self) -> bool:
        """SIGSTOP until its lease has run out, then SIGCONT."""
        with self._plant.lock:  # else it may be one that is about to be started, without a pid
            worker = self._random.choice(self._plant.workers)
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGSTOP)

        def wake() -> None:
            time.sleep(self._lease_s + 2)
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGCONT)

        self._after(wake)
        return True

    def cut_cable(self) -> bool:
        """No worker reaches Redis, the API does."""
        self._plant.cable.cut()
        self._wait(1.5)
        self._plant.cable.mend()
        return True

    def kill_connections(self) -> bool:
        """CLIENT KILL of all that is connected."""
        with redis.Redis.from_url(self._plant.redis.url) as client:
            for kind in ("normal", "pubsub"):
                client.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
        return True

    def fill_disk(self) -> bool:
        """ENOSPC for every image; not without a disk of the images' own."""
        if not self._plant.disk:
            return False
        filler = self._plant.images / "filler"
        with contextlib.suppress(OSError), filler.open("wb") as file:
            while True:
                file.write(b"\0" * (1 << 20))
                file.flush()
        self._wait(1.5)
        filler.unlink(missing_ok=True)
        return True

    def unwritable(self) -> bool:
        """The disk of images is read-only for a while."""
        if not self._plant.disk or not remount(self._plant, "ro"):
            return False
        self._wait(1.5)
        return remount(self._plant, "rw")

    def corrupt(self) -> bool:
        """Change a byte of a stored image, and ask for it; then put it right again."""
        found = self._load.some_image(self._random)
        if found is None:
            return False
        image, path = found, self._path(found["url"])
        try:
            sound = path.read_bytes()
            at = self._random.randrange(len(sound))
            path.write_bytes(sound[:at] + bytes([sound[at] ^ 0x40]) + sound[at + 1 :])
        except OSError:  # expired, or the disk is away
            return False
        with contextlib.suppress(httpx.HTTPError):
            answer = httpx.get(self._plant.url + image["url"], timeout=10)
            if answer.status_code == 200 and digest(answer.content) != image["sha256"]:
                self.violations.append(f"damaged image served: {image['url']}")
        path.write_bytes(sound)
        return True

    def _path(self, url: str) -> Path:
        name = url.partition("?")[0].rpartition("/")[2]
        return FolderStorage(self._plant.images).path(name)
