"""The worker container's health check."""

import redis

from app import keys
from worker.healthy import is_healthy


def test_a_worker_is_healthy_while_its_heartbeat_lives(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.sadd(keys.RQ_WORKERS, "rq:worker:gpu-1-7-ab12")
        assert not is_healthy(client, "gpu-1")
        client.hset("rq:worker:gpu-1-7-ab12", "birth", "now")
        assert is_healthy(client, "gpu-1")


def test_the_worker_of_another_host_is_not_this_one(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.sadd(keys.RQ_WORKERS, "rq:worker:gpu-10-7-ab12")
        client.hset("rq:worker:gpu-10-7-ab12", "birth", "now")
        assert not is_healthy(client, "gpu-1")
