"""`python -m worker.healthy`: exit code 0 while this machine's worker sends its heartbeat."""

import re
import socket
import sys

from redis import Redis

from app import keys
from app.jobs.connection import connect
from app.settings import Settings

__all__ = ["is_healthy", "main"]


def is_healthy(redis: Redis, host: str) -> bool:
    """Whether a worker with a name drawn on `host` has sent a heartbeat in time."""
    own = re.compile(rf"rq:worker:{re.escape(host)}-\d+-[0-9a-f]+".encode())
    names = [name for name in redis.sscan_iter(keys.RQ_WORKERS) if own.fullmatch(name)]
    return bool(names) and bool(redis.exists(*names))


def main() -> int:
    """Look once; a Redis that cannot be reached is a fault, too."""
    with connect(Settings().resolved_redis_url) as redis:
        return 0 if is_healthy(redis, socket.gethostname()) else 1


if __name__ == "__main__":
    sys.exit(main())
