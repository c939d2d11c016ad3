"""`python -m worker`: one worker for one device, until it is told to stop."""

import argparse
import os
import re
import secrets
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from pydantic import ValidationError
from redis import Redis
from redis.exceptions import RedisError

from app import logs
from app.jobs.connection import connect
from app.settings import Settings
from app.storage.base import StorageError

if TYPE_CHECKING:  # it brings torch
    from worker.profile import NoProfile

_log = structlog.get_logger()
_REDIS_WAIT_S = 10.0
_REDIS_RETRY_S = 0.25
_NAME = re.compile(r"[A-Za-z0-9._-]{1,100}")


class StartError(Exception):
    """The worker cannot start; the message is for the person who started it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a worker; 0 when it was told to stop, 1 when it could not start or its device failed."""
    options = _parser().parse_args(argv)
    try:
        settings = _settings()
        logs.configure(settings.log_level, settings.log_json)
        return _run(settings, options)
    except StartError as fault:
        print(f"worker: {fault}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # while it was still starting
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m worker", description="Draw the jobs of the queues. Settings: AVOCAT_*."
    )
    parser.add_argument("--device", help="auto, cpu, cuda or cuda:N (default: AVOCAT_DEVICE)")
    parser.add_argument("--name", help="name shown by `rq info` (default: made from the host's)")
    parser.add_argument(
        "--share",
        type=_share,
        default=(0, 1),
        metavar="I/N",
        help="worker I (from 0) of N on this machine: which device and how many threads it takes",
    )
    parser.add_argument(
        "--profile", type=Path, metavar="FILE", help="write a trace that ui.perfetto.dev opens"
    )
    parser.add_argument("--burst", action="store_true", help="stop when no work is left")
    return parser


def _share(text: str) -> tuple[int, int]:
    turn, _, workers = text.partition("/")
    if not (turn.isdigit() and workers.isdigit() and int(turn) < int(workers)):
        raise argparse.ArgumentTypeError(f"{text!r} should be I/N with I from 0 to N - 1")
    return int(turn), int(workers)


def _settings() -> Settings:
    try:
        return Settings()
    except ValidationError as fault:
        first = fault.errors()[0]
        name = "_".join(str(part) for part in first["loc"]).upper()
        raise StartError(f"AVOCAT_{name}: {first['msg']}") from None


def _run(settings: Settings, options: argparse.Namespace) -> int:
    name = options.name or f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"
    if _NAME.fullmatch(name) is None:
        raise StartError(f"--name {name!r} should be letters, digits, '.', '-' or '_'")
    # Not before the arguments are known to be right: these take seconds to import.
    from models.errors import ModelError
    from worker.metrics import serving
    from worker.registration import NameTaken
    from worker.start import make_runner

    redis = _reachable(settings)
    try:
        device = options.device or settings.device
        runner = make_runner(settings, redis, name, device, options.share)
    except (ModelError, StorageError, ValueError, RedisError) as fault:
        raise StartError(str(fault)) from None
    host, port = settings.worker_metrics_host, settings.worker_metrics_port
    if options.profile is not None:
        runner.profile = _profile(options.profile)
    with closing(runner.profile), ExitStack() as stack:
        try:
            stack.enter_context(serving(runner.metrics, host, port))
        except OSError as fault:
            raise StartError(f"metrics cannot be served at {host}:{port}: {fault}") from None
        try:
            runner.work(burst=options.burst)
        except (NameTaken, RedisError) as fault:
            raise StartError(str(fault)) from None
    code = 1 if runner.fault is not None else 0
    if runner.building:  # seen: a library aborts a process that ends in the midst of its work
        sys.stderr.flush()
        os._exit(code)
    return code


def _profile(file: Path) -> "NoProfile":
    from worker.profile import Profile

    try:
        return Profile(file)
    except OSError as fault:
        raise StartError(f"--profile {str(file)!r} cannot be written: {fault.strerror}") from None


def _reachable(settings: Settings) -> Redis:
    """A client of the settings' Redis, once that answers."""
    until = time.monotonic() + _REDIS_WAIT_S
    redis = _connect(settings)
    while True:
        try:
            redis.ping()
        except RedisError as fault:
            if time.monotonic() >= until:
                raise StartError(
                    f"Redis did not answer for {_REDIS_WAIT_S:g} s: {fault}; "
                    "start it, or set AVOCAT_REDIS_URL"
                ) from None
            time.sleep(_REDIS_RETRY_S)
        else:
            return redis


def _connect(settings: Settings) -> Redis:
    try:
        return connect(settings.resolved_redis_url)
    except ValueError as fault:
        raise StartError(f"AVOCAT_REDIS_URL cannot be read: {fault}") from None


if __name__ == "__main__":
    sys.exit(main())
