"""`python -m tests.deploy.rolling --requests 10000`: restarts under requests, and how many fail.

nginx before two replicas, one of which is always being restarted, while four clients ask without
pause. Nothing is drawn, since each submission is taken back at once: so there is no worker, and
what is measured is what the API and the gateway lose.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from app import keys
from app.embedded_redis import EmbeddedRedis
from app.jobs.connection import connect
from tests.app.service import CARD
from tests.deploy.clients import Clients
from tests.deploy.gateway import Gateway


def main() -> int:
    """Print what was counted as JSON; 1 if a request failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.deploy.rolling", description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000, help="at least so many")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="avocat-rolling-") as folder:
        server = EmbeddedRedis(Path(folder))
        server.start()
        try:
            found = under_restarts(Path(folder), server.url, options.requests)
        finally:
            server.stop()
    print(json.dumps(found, indent=2))
    return 1 if found["failed"] else 0


def under_restarts(folder: Path, redis_url: str, least: int) -> dict[str, Any]:
    """Restart the replicas by turns until so many requests were made, each at least once."""
    with connect(redis_url) as redis:
        redis.hset(keys.MODELS, CARD.name, CARD.model_dump_json())
    gateway = Gateway(folder, redis_url, workers=0)
    with gateway.running(), Clients(gateway.url, least) as clients:
        begun, restarts = time.monotonic(), 0
        while restarts < 2 or not clients.done:
            gateway.restart(gateway.ports[restarts % 2])
            restarts += 1
            print(f"{restarts} restarts, {clients.answered} answered", file=sys.stderr, flush=True)
        took_s = time.monotonic() - begun
    return {
        "answered": clients.answered,
        "failed": len(clients.failures),
        "failures": clients.failures[:10],
        "restarts": restarts,
        "seconds": round(took_s),
    }


if __name__ == "__main__":
    sys.exit(main())
