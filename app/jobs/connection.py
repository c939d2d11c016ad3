"""Redis clients with short time limits, so that a lost Redis is noticed at once.

Every client of every part is made here. An address is one of

    redis://[user:password@]host:6379/0          rediss://… the same by TLS
    unix:///path/redis.sock
    redis+sentinel://[user:password@]host:26379,host:26379/SERVICE[/0]       rediss+sentinel://…

with options after `?`: `ssl_ca_certs`, `ssl_certfile`, `ssl_keyfile` (paths) for TLS, and
`sentinel_username`, `sentinel_password` for sentinels that want to be told.
"""

from typing import Any, NamedTuple, cast
from urllib.parse import parse_qsl, unquote, urlsplit

import redis as blocking
from redis import asyncio as asynchronous
from redis.asyncio.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry as AsyncRetry
from redis.asyncio.sentinel import Sentinel as AsyncSentinel
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.backoff import ConstantBackoff
from redis.connection import HiredisRespSerializer
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry
from redis.sentinel import Sentinel

from app.jobs.together import Together

__all__ = ["connect", "connect_async"]

# One more try covers a connection that Redis closed while it was idle in the pool.
_RETRIES = 1
_RETRY_DELAY_S = 0.05
_CONNECT_S = 1.0
_SCHEMES = {"redis+sentinel": False, "rediss+sentinel": True}  # whether by TLS
_TLS_OPTIONS = {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile"}
_SENTINEL_OPTIONS = {"sentinel_username": "username", "sentinel_password": "password"}


def connect(url: str, *, socket_timeout_s: float = 5.0) -> blocking.Redis:
    """A blocking client, for workers; connects on first use.

    Raises:
        ValueError: the address cannot be read.
    """
    options: dict[str, Any] = {
        "socket_connect_timeout": _CONNECT_S,
        "socket_timeout": socket_timeout_s,
        "retry": Retry(ConstantBackoff(_RETRY_DELAY_S), _RETRIES),
    }
    place = _sentinels(url)
    if place is None:
        return blocking.Redis.from_url(url, **options)
    sentinel = Sentinel(  # type: ignore[no-untyped-call]
        place.addresses, sentinel_kwargs=place.for_sentinels
    )
    found = sentinel.master_for(  # type: ignore[no-untyped-call]
        place.service, **place.for_redis, **options
    )
    return cast(blocking.Redis, found)


def connect_async(url: str, *, max_connections: int = 64) -> asynchronous.Redis:
    """An asyncio client, for the API; connects on first use, and queues when all are busy.

    What is asked at the same time goes together, so it is not for commands that block.

    Raises:
        ValueError: the address cannot be read.
    """
    options: dict[str, Any] = {
        "socket_connect_timeout": _CONNECT_S,
        "socket_timeout": 2.0,
        "retry": AsyncRetry(
            ConstantBackoff(_RETRY_DELAY_S), _RETRIES, supported_errors=(RedisConnectionError,)
        ),
    }
    place = _sentinels(url)
    if place is not None:  # its pool does not queue; it refuses far later instead
        sentinel = AsyncSentinel(  # type: ignore[no-untyped-call]
            place.addresses, sentinel_kwargs=place.for_sentinels
        )
        found = sentinel.master_for(
            place.service,
            redis_class=_Master,
            max_connections=16 * max_connections,
            **place.for_redis,
            **options,
        )
        return cast(asynchronous.Redis, found)
    pool = asynchronous.BlockingConnectionPool.from_url(
        url, max_connections=max_connections, timeout=2.0, **options
    )
    pool.connection_class = _PACKING_IN_C.get(pool.connection_class, pool.connection_class)
    return Together.from_pool(pool)


class _PacksInC:
    """As the blocking client does by itself: a submission has forty words."""

    _packer = HiredisRespSerializer()

    def pack_command(self, *args: Any) -> list[bytes]:
        packed: list[bytes] = self._packer.pack(*args)
        return packed


class _Tcp(_PacksInC, Connection):
    pass


class _Tls(_PacksInC, SSLConnection):
    pass


class _Unix(_PacksInC, UnixDomainSocketConnection):
    pass


_PACKING_IN_C: dict[type, type] = {
    Connection: _Tcp,
    SSLConnection: _Tls,
    UnixDomainSocketConnection: _Unix,
}


class _Master(Together):
    """The client of a master, which closes those of the sentinels that it was found by, too."""

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        await super().aclose(close_connection_pool)
        pool = cast(SentinelConnectionPool, self.connection_pool)
        for sentinel in pool.sentinel_manager.sentinels:
            await sentinel.aclose()


class _Sentinels(NamedTuple):
    """Who knows where Redis is, and how to speak with either."""

    addresses: list[tuple[str, int]]
    service: str
    for_sentinels: dict[str, Any]
    for_redis: dict[str, Any]


def _sentinels(url: str) -> _Sentinels | None:
    """What an address with sentinels says; None for any other.

    Raises:
        ValueError: it cannot be read.
    """
    scheme = url.partition("://")[0]
    if scheme not in _SCHEMES:
        return None
    parts = urlsplit(url)
    user, _, hosts = parts.netloc.rpartition("@")
    service, _, db = parts.path.strip("/").partition("/")
    given = dict(parse_qsl(parts.query))
    unknown = given.keys() - _TLS_OPTIONS - _SENTINEL_OPTIONS.keys()
    if not hosts or not service or not (db or "0").isdecimal() or unknown:
        raise ValueError(
            f"an address of sentinels should be {scheme}://host:26379,host:26379/SERVICE/0"
            + (f", without {sorted(unknown)}" if unknown else "")
        )
    name, _, password = (unquote(part) for part in user.partition(":"))
    tls: dict[str, Any] = {key: value for key, value in given.items() if key in _TLS_OPTIONS}
    if _SCHEMES[scheme]:
        tls["ssl"] = True
    signed = {ours: given[key] for key, ours in _SENTINEL_OPTIONS.items() if key in given}
    waits = {"socket_connect_timeout": _CONNECT_S, "socket_timeout": _CONNECT_S}
    login = {"username": name or None, "password": password or None, "db": int(db or 0)}
    addresses = [_address(host) for host in hosts.split(",")]
    return _Sentinels(addresses, service, tls | signed | waits, tls | login)


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        return text.strip("[]"), 26379
    if not port.isdecimal() or not host:
        raise ValueError(f"the sentinel {text!r} should be host:port")
    return host.strip("[]"), int(port)
