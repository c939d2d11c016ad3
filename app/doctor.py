"""What may be wrong with a set-up, found before it loses something; each fault with its cure."""

import hashlib
import importlib.util
import json
import secrets
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, cast

import httpx
from redis import Redis
from redis.exceptions import NoPermissionError, RedisError, ResponseError

from app import keys
from app.embedded_redis import EmbeddedRedisError, redis_executable
from app.jobs.connection import connect
from app.jobs.queues import STORAGE
from app.settings import Settings
from app.storage.base import StorageError
from app.storage.opening import open_storage

__all__ = ["Finding", "Verdict", "examine"]

_NEARLY_FULL = 0.9
_LEAST_REDIS = (6, 2)  # what is tested
_LITTLE_BYTES, _TOO_LITTLE_BYTES = 1 << 30, 64 << 20
_SKEW_S = 1.0  # leases and expiries are compared across machines
_PATIENCE_S = 5.0


class Verdict(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"  # works, but something may be lost or slow
    FAULT = "fault"  # does not work


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    check: str
    verdict: Verdict
    found: str
    fix: str = ""


def _ok(check: str, found: str) -> Finding:
    return Finding(check, Verdict.OK, found)


def _warning(check: str, found: str, fix: str) -> Finding:
    return Finding(check, Verdict.WARNING, found, fix)


def _fault(check: str, found: str, fix: str) -> Finding:
    return Finding(check, Verdict.FAULT, found, fix)


def examine(settings: Settings) -> Iterator[Finding]:
    """Look at everything, the quickest first; raises nothing."""
    yield _bundle(settings.bundle)
    yield _storage(settings)
    yield _disk(settings)
    yield _runtime(settings)
    yield _port(settings)
    yield from _redis(settings)


def _bundle(folder: Path) -> Finding:
    """Whether each file of the bundle has the hash that bundle.json names."""
    elsewhere = "name the bundle's folder with AVOCAT_BUNDLE"
    try:
        config = json.loads((folder / "bundle.json").read_text("utf-8"))
        files = cast(dict[str, str], config["files"])
        for name, expected in files.items():
            file = folder / name
            if not file.resolve().is_relative_to(folder.resolve()):
                return _fault("bundle", f"{name!r} lies outside the bundle", elsewhere)
            with file.open("rb") as handle:
                if hashlib.file_digest(handle, "sha256").hexdigest() != expected:
                    again = (
                        f"copy {name} again from where the bundle came from, or let the "
                        "training that wrote it run to its end (a CLIP's, and then the denoiser's)"
                    )
                    return _fault("bundle", f"{name} is damaged: its sha256 is another", again)
    except FileNotFoundError as gone:
        return _fault("bundle", f"{gone.filename} is missing", elsewhere)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as fault:
        return _fault("bundle", f"{str(folder)!r} cannot be read: {fault!r}", elsewhere)
    return _ok("bundle", f"{config.get('name')}: {len(files)} files as bundle.json names them")


def _storage(settings: Settings) -> Finding:
    """Write, read and delete an image, as workers do."""
    where = settings.storage or str(settings.images_dir)
    name, data = f"doctor_{secrets.token_hex(8)}_0.png", secrets.token_bytes(64)
    fix = "let the user that runs Avocat write there, or set AVOCAT_DATA_DIR or AVOCAT_STORAGE"
    try:
        storage = open_storage(settings, patience_s=_PATIENCE_S)
        storage.write(name, data)
        same = storage.read(name) == data
        storage.delete(name)
    except (StorageError, OSError) as fault:
        return _fault("storage", str(fault), fix)
    if not same:
        return _fault("storage", f"{where} gives back other bytes", "replace the disk or service")
    return _ok("storage", f"{where} can be written, read and deleted from")


def _disk(settings: Settings) -> Finding:
    folder = settings.data_dir.resolve()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    found = f"{free / (1 << 20):.0f} MiB free for {settings.data_dir.resolve()}"
    fix = "free some space (`avocat gc`), keep jobs for less long (AVOCAT_RETENTION_S), or move it"
    if free < _TOO_LITTLE_BYTES:
        return _fault("disk", found, fix)
    return _warning("disk", found, fix) if free < _LITTLE_BYTES else _ok("disk", found)


def _runtime(settings: Settings) -> Finding:
    """What workers draw with here: the newest of the measurements that they keep."""
    device = settings.device
    if importlib.util.find_spec("torch") is None:
        told = "torch is not installed here: this machine runs no worker"
        return _warning("runtime", told, "pip install 'avocat[worker]' where workers run")
    try:
        files = sorted(
            settings.runtimes_dir.glob("[0-9a-f]*.json"), key=lambda file: file.stat().st_mtime
        )
        measured = json.loads(files[-1].read_text("utf-8")) if files else []
        times = ", ".join(
            f"{one['name']} {1000 * one['seconds']:.2f} ms ({_off(one)})" for one in measured
        )
    except (OSError, ValueError, KeyError, TypeError) as fault:
        fix = f"delete {settings.runtimes_dir}: it is measured again at the next start"
        return _warning("runtime", f"the measured speeds cannot be read: {fault!r}", fix)
    chosen = f"device {device}, runtime {settings.runtime}"
    return _ok("runtime", f"{chosen}; measured: {times or 'nothing yet, the first start does'}")


def _off(one: Mapping[str, Any]) -> str:
    """How far a runtime is from plain torch: an output of the network, and pictures of 255."""
    levels = one.get("levels", 0.0)
    pictures = f", pictures within {levels:.1f} of 255" if levels else ""
    return f"{one['difference']:.1g} off{pictures}"


def _port(settings: Settings) -> Finding:
    """Whether the API's port is free, or is this service already."""
    host, port = settings.host, settings.port
    if port == 0:
        return _ok("port", "any free one")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as fault:
            reason = fault.strerror or str(fault)
        else:
            return _ok("port", f"{host}:{port} is free")
    at = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - not bound here
    url = f"http://[{at}]:{port}" if ":" in at else f"http://{at}:{port}"
    try:
        httpx.get(f"{url}/healthz", timeout=_PATIENCE_S, trust_env=False).raise_for_status()
    except httpx.HTTPError:
        fix = "choose another with AVOCAT_HOST and AVOCAT_PORT, or stop what has it"
        return _fault("port", f"{host}:{port} cannot be listened on: {reason}", fix)
    return _ok("port", f"{host}:{port}: a service answers there, and says it is healthy")


def _redis(settings: Settings) -> Iterator[Finding]:
    own = settings.redis_url is None
    if own:
        try:
            redis_executable()
        except EmbeddedRedisError as fault:
            yield _fault("redis", str(fault), "pip install 'avocat[embedded]', or install Redis")
            return
    try:
        with connect(settings.resolved_redis_url) as redis:
            info = cast(dict[str, object], redis.info())
            yield _version(info)
            yield from _persistence(redis, info)
            yield _memory(info)
            yield _clock(redis)
            yield _workers(redis)
            yield _quota(settings, redis)
    except ValueError as wrong:
        yield _fault("redis", f"AVOCAT_REDIS_URL: {wrong}", "redis://host:6379/0, for example")
    except NoPermissionError as fault:
        fix = "give the user of AVOCAT_REDIS_URL the rights of deploy/redis/users.acl"
        yield _fault("redis", f"its user may not do what is needed: {fault}", fix)
    except RedisError as fault:
        if own:
            fix = "start `avocat serve`, and ask again"
            yield _warning("redis", "the service does not run, so its Redis was not asked", fix)
        else:
            fix = "start it, or correct AVOCAT_REDIS_URL"
            yield _fault("redis", f"it cannot be used: {type(fault).__name__}: {fault}", fix)


def _version(info: Mapping[str, object]) -> Finding:
    version = str(info.get("redis_version", "0"))
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    least = ".".join(map(str, _LEAST_REDIS))
    if numbers < _LEAST_REDIS:
        return _fault("redis", f"version {version}", f"use Redis {least} or newer")
    return _ok("redis", f"version {version}")


def _persistence(redis: Redis, info: Mapping[str, object]) -> Iterator[Finding]:
    """Whether an accepted job outlives Redis, and whether Redis may forget one by itself."""
    if str(info.get("aof_last_write_status", "ok")) != "ok":
        fix = "make room on the disk of Redis; it refuses jobs until then"
        yield _fault("persistence", "Redis cannot write its append-only file", fix)
    aof, fsync = bool(info.get("aof_enabled")), _config(redis, "appendfsync")
    if not aof:
        fix = "redis-cli config set appendonly yes, and `appendonly yes` in redis.conf"
        yield _warning("persistence", "appendonly is off: a restart loses accepted jobs", fix)
    elif fsync == "no":
        fix = "redis-cli config set appendfsync everysec, and the same in redis.conf"
        yield _warning("persistence", "appendfsync no: a power cut loses many seconds", fix)
    elif not fsync:
        yield _ok("persistence", "appendonly is on; how often it is synced, Redis does not tell")
    else:
        means = "nothing" if fsync == "always" else "at most about a second of accepted jobs"
        yield _ok("persistence", f"appendfsync {fsync}: a power cut loses {means}")
    policy = str(info.get("maxmemory_policy", "unknown"))
    limited = int(cast(int, info.get("maxmemory", 0))) > 0
    if policy != "noeviction":
        found = f"maxmemory-policy {policy}: Redis may delete jobs when memory is short"
        now = "" if limited else " (not yet: there is no maxmemory)"
        fix = "redis-cli config set maxmemory-policy noeviction, and the same in redis.conf"
        yield _warning("eviction", found + now, fix)
    else:
        yield _ok("eviction", "maxmemory-policy noeviction: Redis deletes nothing by itself")


def _memory(info: Mapping[str, object]) -> Finding:
    """Whether Redis still takes anything in: one that evicts nothing refuses when it is full."""
    used, most = (cast(int, info.get(name, 0)) for name in ("used_memory", "maxmemory"))
    found = f"Redis has {used / (1 << 20):.0f} MiB"
    if not most or info.get("maxmemory_policy") != "noeviction":
        return _ok("memory", found)
    found += f", of {most / (1 << 20):.0f} MiB (maxmemory)"
    if used < _NEARLY_FULL * most:
        return _ok("memory", found)
    fix = "raise maxmemory, or keep jobs for less long (AVOCAT_RETENTION_S)"
    if used < most:
        return _warning("memory", f"{found}: it takes nothing in when that is full", fix)
    return _fault("memory", f"{found}: jobs are refused with 503, and none can end", fix)


def _config(redis: Redis, name: str) -> str:
    """A setting of Redis, '' where a managed one does not tell."""
    try:
        found = cast(dict[object, object], redis.config_get(name))
    except ResponseError:
        return ""
    value = found.get(name, found.get(name.encode(), ""))
    return value.decode() if isinstance(value, bytes) else str(value)


def _clock(redis: Redis) -> Finding:
    """How far this machine's clock is from Redis', by the quickest of some questions."""
    best: tuple[float, float] | None = None
    for _ in range(5):
        began = time.time()
        seconds, microseconds = redis.time()
        ended = time.time()
        skew = seconds + microseconds / 1e6 - (began + ended) / 2
        if best is None or ended - began < best[0]:
            best = (ended - began, skew)
    if best is None or abs(best[1]) > _SKEW_S + best[0]:
        fix = "keep the clocks of all machines in step (chrony, systemd-timesyncd)"
        found = f"this clock and Redis' differ by {best[1] if best else 0:+.1f} s"
        return _fault("clock", found, fix)
    return _ok("clock", f"{1000 * best[1]:+.0f} ms from Redis'")


def _quota(settings: Settings, redis: Redis) -> Finding:
    """How much of the room for images is taken."""
    told = cast(list[bytes | None], redis.hmget(keys.STORAGE_USE, *STORAGE))
    used, quota = sum(int(one or 0) for one in told), settings.storage_quota_bytes
    found = f"{used / (1 << 20):.0f} MiB of images stored or promised to jobs"
    if not quota:
        return _ok("quota", f"{found}; there is none (AVOCAT_STORAGE_QUOTA_BYTES)")
    found += f", of {quota / (1 << 20):.0f} MiB"
    if used < _NEARLY_FULL * quota:
        return _ok("quota", found)
    fix = "raise AVOCAT_STORAGE_QUOTA_BYTES, or keep jobs for less long (AVOCAT_RETENTION_S)"
    return _warning("quota", f"{found}: submissions are refused with 503 when it is full", fix)


def _workers(redis: Redis) -> Finding:
    names = cast(set[bytes], redis.smembers(keys.RQ_WORKERS))
    live = redis.exists(*names) if names else 0
    cards = cast(dict[bytes, bytes], redis.hgetall(keys.MODELS))
    models = ", ".join(_described(name, text) for name, text in sorted(cards.items()))
    if not live:
        return _warning("workers", "none is alive: jobs wait", "start `avocat worker`")
    return _ok("workers", f"{live} alive; models: {models}")


def _described(name: bytes, text: bytes) -> str:
    try:
        runtime = str(json.loads(text).get("runtime") or "")
    except (ValueError, AttributeError):
        runtime = "unreadable card"
    shown = name.decode("utf-8", "replace")
    return f"{shown} ({runtime})" if runtime else shown
