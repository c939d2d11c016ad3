"""All that Redis holds, as a file: what one release wrote, for the next ones to read.

With a release checked out: `python -m tests.integration.snapshot tests/integration/records/X.json`.
"""

import base64
import json
import sys
import tempfile
from pathlib import Path
from typing import Any, cast

import redis

from tests.integration.service import Service, wait_until
from tests.models.tiny import build_tiny_bundle

Snapshot = dict[str, dict[str, Any]]


def capture(connection: redis.Redis) -> Snapshot:
    """Every key: its type and value; bytes that are no text as base64."""
    read = {
        "string": connection.get,
        "hash": connection.hgetall,
        "list": lambda key: connection.lrange(key, 0, -1),
        "set": connection.smembers,
        "zset": lambda key: connection.zrange(key, 0, -1, withscores=True),
    }
    found: Snapshot = {}
    for key in sorted(cast(list[bytes], connection.keys())):
        kind = cast(bytes, connection.type(key)).decode()
        if kind in read:  # streams are RQ's results, which nothing reads
            found[key.decode()] = {kind: _to_json(read[kind](key))}
    return found


def restore(connection: redis.Redis, snapshot: Snapshot) -> None:
    """Write all of it back, but for lifetimes."""
    for key, entry in snapshot.items():
        ((kind, value),) = ((kind, _from_json(value)) for kind, value in entry.items())
        if kind == "string":
            connection.set(key, value)
        elif kind == "hash":
            connection.hset(key, mapping={name: one for name, one in value})
        elif kind == "list":
            connection.rpush(key, *value)
        elif kind == "set":
            connection.sadd(key, *value)
        else:
            connection.zadd(key, {name: float(score) for name, score in value})


def _to_json(value: Any) -> Any:
    if isinstance(value, dict):
        return [[_to_json(name), _to_json(one)] for name, one in sorted(value.items())]
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, (list, set, tuple)):
        return [_to_json(one) for one in (sorted(value) if isinstance(value, set) else value)]
    return value


def _from_json(value: Any) -> Any:
    if isinstance(value, dict):
        return base64.b64decode(value["base64"])
    return [_from_json(one) for one in value] if isinstance(value, list) else value


def main(file: Path) -> None:
    """One job of each state: succeeded, failed, canceled, running in a worker, queued."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        bundle = build_tiny_bundle(Path(folder) / "tiny")
        with Service(data, bundle, micro_batch="1", slots="2") as service:
            fields = {"metadata": {"état": "jaune"}, "negative_prompt": "pear", "steps": 2}
            service.finished(service.submit("a red apple", seed=7, n=2, **fields)["id"])
            connection = redis.Redis(unix_socket_path=str(data / "redis/redis.sock"))
            service.part("worker").suspend()
            failed = service.submit("a quince")["id"]
            connection.delete(f"rq:job:{failed}")
            service.part("worker").resume()
            assert service.finished(failed)["status"] == "failed"
            running = service.submit("a green pear", seed=11, steps=200, n=8)["id"]
            wait_until(lambda: service.job(running)["progress"]["step"] > 0, 60, "the start")
            canceled = service.submit("a plum")["id"]
            service.http.post(f"/v1/jobs/{canceled}/cancel").raise_for_status()
            service.submit("a yellow lemon", seed=13, steps=2, priority="low")
            snapshot = capture(connection)
            assert service.job(running)["status"] == "running"
            connection.close()
    file.write_text(json.dumps(snapshot, indent=1, ensure_ascii=False, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
