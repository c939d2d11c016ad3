"""Starts the parts of one machine's service, keeps them alive, and stops them in order."""

import contextlib
import http.client
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import IO, Protocol

import structlog

from app.embedded_redis import EmbeddedRedis, EmbeddedRedisError, tied_to_parent

__all__ = ["Part", "ProcessPart", "RedisPart", "Supervisor", "SupervisorError"]

TICK_S = 0.1
STABLE_AFTER_S = 60.0
BACKOFF_FIRST_S = 0.5
BACKOFF_MAX_S = 30.0
TRIES_AT_START = 3
READY_DEADLINE_S = 300.0


class SupervisorError(RuntimeError):
    """The service cannot be brought up; the sentence says which part and why."""


class Part(Protocol):
    """Something the supervisor starts, watches and stops."""

    name: str

    def start(self) -> None:
        """Start it; raises `EmbeddedRedisError` or `OSError` if that fails at once."""

    def exit_code(self) -> int | None:
        """None while it runs (or was never started), else how it ended."""

    def stop(self, hurry: Callable[[], bool]) -> None:
        """End it, with the time it needs to end well unless `hurry()`; does nothing if ended."""


@dataclass
class ProcessPart:
    """A child process in a session of its own, so that Ctrl-C reaches only the supervisor."""

    name: str
    argv: Sequence[str]
    environment: Mapping[str, str]
    grace_s: float
    inherit: Sequence[int] = ()
    output: IO[bytes] | None = None
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process; it is killed if this one dies."""
        self.process = subprocess.Popen(
            self.argv,
            env=dict(self.environment),
            stdin=subprocess.DEVNULL,
            stdout=self.output,
            stderr=self.output,
            pass_fds=tuple(self.inherit),
            start_new_session=True,
            preexec_fn=tied_to_parent(signal.SIGKILL),
        )

    def exit_code(self) -> int | None:
        """None while it runs."""
        return None if self.process is None else self.process.poll()

    def stop(self, hurry: Callable[[], bool]) -> None:
        """SIGTERM, `grace_s` to finish, then SIGKILL to it and what it started."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.terminate()
        deadline = time.monotonic() + self.grace_s
        while self.process.poll() is None and time.monotonic() < deadline and not hurry():
            time.sleep(0.02)
        if self.process.poll() is None:
            structlog.get_logger().warning("part did not stop in time", part=self.name)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@dataclass
class RedisPart:
    """The embedded Redis as a part."""

    server: EmbeddedRedis
    lock: int
    name: str = "redis"

    def start(self) -> None:
        """Start it and wait until it answers; it holds the folder's lock while it lives."""
        self.server.start(inherit=[self.lock])

    def exit_code(self) -> int | None:
        """None while it runs."""
        return None if self.server.process is None else self.server.process.poll()

    def stop(self, hurry: Callable[[], bool]) -> None:
        """Let it write everything down; that takes no time worth skipping."""
        self.server.stop()


@dataclass
class _Watch:
    """What the supervisor remembers of one part."""

    part: Part
    started_at: float = 0.0
    failures: int = 0
    next_start_at: float | None = None  # set while the part waits to be started again


@dataclass
class Supervisor:
    """Runs `parts` in the given order and stops them in the reverse one."""

    parts: Sequence[Part]
    host: str
    port: int
    on_ready: Callable[[], None]
    signals: int = 0
    ready: bool = False
    _watches: list[_Watch] = field(default_factory=list)

    def run(self) -> None:
        """Start everything and watch it until SIGTERM, SIGINT or SIGHUP; then stop everything.

        Raises:
            SupervisorError: a part keeps dying before the service was ready, or it never is.
        """
        previous = {
            signum: signal.signal(signum, self._on_signal)
            for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        }
        try:
            self._start_all()
            self._watch()
        finally:
            self._stop_all()
            for signum, handler in previous.items():
                signal.signal(signum, handler)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self.signals += 1

    def _start_all(self) -> None:
        for part in self.parts:
            if self.signals:
                return
            watch = _Watch(part)
            self._watches.append(watch)
            self._start(watch)
            while watch.next_start_at is not None and not self.signals:  # the rest need it
                time.sleep(TICK_S)
                self._tend(watch)

    def _watch(self) -> None:
        deadline = time.monotonic() + READY_DEADLINE_S
        while not self.signals:
            for watch in self._watches:
                self._tend(watch)
            if not self.ready and self._is_ready():
                self.ready = True
                self.on_ready()
            if not self.ready and time.monotonic() > deadline:
                raise SupervisorError(f"the service is not ready after {READY_DEADLINE_S:.0f} s")
            time.sleep(TICK_S)

    def _start(self, watch: _Watch) -> None:
        watch.started_at, watch.next_start_at = time.monotonic(), None
        try:
            watch.part.start()
        except (EmbeddedRedisError, OSError) as fault:
            self._plan_restart(watch, str(fault))

    def _tend(self, watch: _Watch) -> None:
        """Start a part again once its back-off is over; notice one that has ended."""
        if watch.next_start_at is not None:
            if time.monotonic() >= watch.next_start_at:
                self._start(watch)
        elif (code := watch.part.exit_code()) is not None:
            watch.part.stop(lambda: True)  # whatever it left behind
            if code > 0 and not self.ready:  # it has said why; trying again changes nothing
                raise SupervisorError(f"{watch.part.name} does not start ({_how(code)})")
            self._plan_restart(watch, f"it ended with {_how(code)}")

    def _plan_restart(self, watch: _Watch, reason: str) -> None:
        stable = time.monotonic() - watch.started_at > STABLE_AFTER_S
        watch.failures = 1 if stable else watch.failures + 1
        if not self.ready and watch.failures >= TRIES_AT_START:
            raise SupervisorError(f"{watch.part.name} does not start: {reason}")
        delay_s = min(BACKOFF_FIRST_S * 2 ** (watch.failures - 1), BACKOFF_MAX_S)
        watch.next_start_at = time.monotonic() + delay_s
        structlog.get_logger().warning(
            "part ended; starting it again", part=watch.part.name, reason=reason, in_s=delay_s
        )

    def _is_ready(self) -> bool:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=1.0)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _stop_all(self) -> None:
        """Worker first, so that jobs end while clients can still ask; Redis last."""
        for watch in reversed(self._watches):
            watch.part.stop(hurry=lambda: self.signals > 1)


def _how(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"exit code {code}"
    return f"signal {signal.Signals(-code).name}"
