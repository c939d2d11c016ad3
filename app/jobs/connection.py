"""Redis clients with short time limits, so that a lost Redis is noticed at once."""

import redis as blocking
from redis import asyncio as asynchronous
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ConstantBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry

__all__ = ["connect", "connect_async"]

# One more try covers a connection that Redis closed while it was idle in the pool.
_RETRIES = 1
_RETRY_DELAY_S = 0.05


def connect(url: str, *, socket_timeout_s: float = 5.0) -> blocking.Redis:
    """A blocking client, for workers; connects on first use."""
    return blocking.Redis.from_url(
        url,
        socket_connect_timeout=1.0,
        socket_timeout=socket_timeout_s,
        retry=Retry(ConstantBackoff(_RETRY_DELAY_S), _RETRIES),
    )


def connect_async(url: str, *, max_connections: int = 64) -> asynchronous.Redis:
    """An asyncio client, for the API; connects on first use, and queues when all are busy."""
    pool = asynchronous.BlockingConnectionPool.from_url(
        url,
        max_connections=max_connections,
        timeout=2.0,
        socket_connect_timeout=1.0,
        socket_timeout=2.0,
        retry=AsyncRetry(
            ConstantBackoff(_RETRY_DELAY_S), _RETRIES, supported_errors=(RedisConnectionError,)
        ),
    )
    return asynchronous.Redis.from_pool(pool)
