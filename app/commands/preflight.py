"""What must be true before anything is started; each fault is one sentence and an exit code."""

import errno
import fcntl
import ipaddress
import os
import socket
import time
from pathlib import Path

import redis

from app.commands.console import ExitCode, fail
from app.jobs.connection import connect
from app.settings import Settings
from app.storage.base import StorageError
from app.storage.opening import open_storage

__all__ = [
    "check_bundle",
    "check_redis",
    "check_storage",
    "listen",
    "lock_data_folder",
    "take_address",
]

LOCK_WAIT_S = 3.0  # a Redis whose supervisor was killed needs a moment to write down and leave


def check_bundle(bundle: Path) -> None:
    """End with one sentence if there is no bundle; the worker looks closer when it loads it."""
    if not (bundle / "bundle.json").is_file():
        fail(
            f"no model bundle at {str(bundle)!r} (no bundle.json there); "
            "name its folder with --bundle or AVOCAT_BUNDLE"
        )


def check_redis(url: str) -> None:
    """End with one sentence if a Redis named in the settings cannot be used."""
    try:
        with connect(url) as client:
            client.ping()
    except ValueError as wrong:
        fail(f"AVOCAT_REDIS_URL is not a Redis address: {wrong}", ExitCode.BAD_INPUT)
    except redis.RedisError as fault:
        fail(f"the Redis of AVOCAT_REDIS_URL cannot be used: {fault}")


def check_storage(settings: Settings) -> None:
    """End with one sentence if images cannot be kept where the settings say."""
    try:
        open_storage(settings, patience_s=2.0).check()
    except StorageError as fault:
        fail(f"the storage of AVOCAT_STORAGE cannot be used: {fault}")


def lock_data_folder(folder: Path) -> int:
    """Make the data folder and hold its lock; returns the descriptor that holds it."""
    try:
        for part in (folder / "images", folder / "redis"):
            part.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not os.access(part, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        lock = os.open(folder / "serve.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as fault:
        reason = fault.strerror or str(fault)
        fail(
            f"cannot write to the data folder {str(folder)!r}: {reason}; "
            "choose another with --data-dir or AVOCAT_DATA_DIR"
        )
    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            if time.monotonic() > deadline:
                fail(f"another avocat serve is running in the data folder {str(folder)!r}")
            time.sleep(0.05)


def listen(settings: Settings) -> socket.socket:
    """The listening socket, which outlives a restart of the API; ends as `take_address` does."""
    listener = take_address(settings)
    listener.listen(2048)
    return listener


def take_address(settings: Settings) -> socket.socket:
    """A socket at the address that does not listen yet.

    Connections are refused until it does, so that a gateway asks another replica at once.
    Ends with one sentence if it cannot be had, or if strangers could reach a service without keys.
    """
    listener = _bound(settings.host, settings.port)
    address = listener.getsockname()[0]
    closed = settings.keys or settings.require_keys
    open_to_all = not closed and not settings.allow_anonymous
    if open_to_all and not ipaddress.ip_address(address.partition("%")[0]).is_loopback:
        listener.close()
        fail(
            f"without keys everybody who reaches {settings.host} could use the service: set "
            "AVOCAT_REQUIRE_KEYS=true (and make some by `avocat keys create`), "
            "AVOCAT_API_KEYS=name:secret, or AVOCAT_ALLOW_ANONYMOUS=true if that is wanted",
            ExitCode.BAD_INPUT,
        )
    return listener


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind((host, port))
        # Read back, it knows its protocol; of others asyncio does not switch Nagle's delay off.
        return socket.socket(fileno=made.detach())
    except OSError as fault:
        made.close()
        if fault.errno is None or fault.errno < 0 or fault.errno == errno.EADDRNOTAVAIL:
            fail(f"AVOCAT_HOST={host!r} is not an address of this machine", ExitCode.BAD_INPUT)
        if fault.errno == errno.EADDRINUSE:
            fail(f"port {port} on {host} is taken; choose another with --port or AVOCAT_PORT")
        fail(f"cannot listen on {host}:{port}: {os.strerror(fault.errno)}")
