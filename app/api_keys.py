"""API keys that `avocat keys` makes: kept in Redis, the secrets only as hashes.

In Redis, since that is what all API processes share; a key that is revoked there is refused
everywhere within seconds. A secret has 256 random bits, so a plain hash of it tells nothing: slow
hashes are for what people choose.
"""

import hashlib
import hmac
import secrets
import time
from collections.abc import Awaitable, Sequence
from enum import StrEnum
from typing import Any, Final, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.exceptions import ResponseError

from app import keys
from app.jobs.joint import Joint

__all__ = ["ALL_DAY_S", "KeyRing", "KeyStore", "Limits", "Scope", "StoredKey", "new_key"]

NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$"
_SECRET_PREFIX: Final = "avocat"  # noqa: S105 - of every secret
_ID_LETTERS: Final = "abcdefghijkmnpqrstuvwxyz23456789"  # no two that look alike
ALL_DAY_S: Final = 86400


class Scope(StrEnum):
    """What a key may do."""

    SUBMIT = "submit"  # jobs, and their cancellation; verification, which draws again
    READ = "read"  # jobs, events, images, models
    HIGH = "high"  # jobs of priority high
    ADMIN = "admin"  # see and cancel the jobs of all owners; load and unload models


class Limits(BaseModel):
    """A key's own limits; None: the service's."""

    model_config = ConfigDict(frozen=True)

    per_minute: int | None = Field(None, ge=1, description="submissions in any 60 s")
    active: int | None = Field(None, ge=1, description="jobs of its owner queued or running")
    per_day: int | None = Field(None, ge=1, description="pictures asked for in a day, UTC")


class StoredKey(BaseModel):
    """A key as it is kept. Jobs belong to `owner`: several keys of one owner share them."""

    model_config = ConfigDict(frozen=True)

    id: str
    name: str = Field(pattern=NAME)
    owner: str = Field(pattern=NAME)
    sha256: str
    scopes: tuple[Scope, ...]
    limits: Limits = Limits()
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None

    @property
    def prefix(self) -> str:
        """What of the secret may be seen."""
        return f"{_SECRET_PREFIX}_{self.id}_…"

    def is_valid(self, now: float) -> bool:
        """Whether it opens anything at this unix time."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)

    def opens_with(self, secret: str) -> bool:
        """Whether this is its secret, in constant time."""
        return hmac.compare_digest(self.sha256, _sha256(secret))


def new_key(
    name: str,
    *,
    owner: str | None = None,
    scopes: Sequence[Scope] = (Scope.SUBMIT, Scope.READ),
    limits: Limits | None = None,
    lasts_s: float | None = None,
) -> tuple[StoredKey, str]:
    """A key and its secret, which is in no other place.

    Raises:
        ValidationError: a name or owner of another form.
    """
    key_id = "".join(secrets.choice(_ID_LETTERS) for _ in range(8))
    secret = f"{_SECRET_PREFIX}_{key_id}_{secrets.token_hex(32)}"
    now = round(time.time(), 3)
    key = StoredKey(
        id=key_id,
        name=name,
        owner=name if owner is None else owner,
        sha256=_sha256(secret),
        scopes=tuple(dict.fromkeys(scopes)),
        limits=limits or Limits(),
        created_at=now,
        expires_at=None if lasts_s is None else now + lasts_s,
    )
    return key, secret


def _sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


class KeyStore:
    """All keys, for the command line."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def add(self, key: StoredKey) -> None:
        """Keep a new key."""
        self._redis.hset(keys.API_KEYS, key.id, key.model_dump_json())

    def all(self) -> list[tuple[StoredKey, float | None]]:
        """Keys, oldest first, and when each was last used, in unix seconds."""
        found = _read(cast(dict[bytes, bytes], self._redis.hgetall(keys.API_KEYS)))
        used = cast(dict[bytes, bytes], self._redis.hgetall(keys.API_KEYS_USED))
        times = {key_id.decode(): float(when) for key_id, when in used.items()}
        ordered = sorted(found.values(), key=lambda key: key.created_at)
        return [(key, times.get(key.id)) for key in ordered]

    def revoke(self, key: StoredKey) -> StoredKey:
        """Let it open nothing any more. It stays in the list: a service with keys stays closed."""
        revoked = key.model_copy(update={"revoked_at": round(time.time(), 3)})
        self._redis.hset(keys.API_KEYS, key.id, revoked.model_dump_json())
        return revoked


class KeyRing:
    """The keys as an API process knows them: read at most every `FRESH_S` seconds."""

    FRESH_S = 2.0

    def __init__(self, redis: AsyncRedis) -> None:
        self._redis = redis
        self._keys: dict[str, StoredKey] = {}
        self._used: dict[str, str] = {}
        self._read_at = float("-inf")
        self._reading = Joint(self._read_all)

    async def has_keys(self) -> bool:
        """Whether there is any key, valid or not, or was since this process began."""
        await self._refresh()
        return bool(self._keys)

    async def find(self, secret: str) -> StoredKey | None:
        """The valid key of this secret. That it was used is written down with the next reading."""
        await self._refresh()
        key_id = secret.removeprefix(f"{_SECRET_PREFIX}_").partition("_")[0]
        key, now = self._keys.get(key_id), time.time()
        if key is None or not key.opens_with(secret) or not key.is_valid(now):
            return None
        self._used[key.id] = f"{now:.0f}"
        return key

    async def _refresh(self) -> None:
        if time.monotonic() - self._read_at > self.FRESH_S:
            await self._reading.done()

    async def _read_all(self) -> None:
        pipe = self._redis.pipeline(transaction=False)
        pipe.hgetall(keys.API_KEYS)
        used = dict(self._used)
        for key_id, when in used.items():
            pipe.hset(keys.API_KEYS_USED, key_id, when)
        # A Redis that takes in nothing, for its memory is full, still says who may read.
        raw, *written = await cast(Awaitable[list[Any]], pipe.execute(raise_on_error=False))
        if isinstance(raw, ResponseError):
            raise raw
        if not any(isinstance(one, ResponseError) for one in written):
            self._used = {k: when for k, when in self._used.items() if used.get(k) != when}
        # A Redis that has lost them must not open the service.
        gone = {key.id: _gone(key) for key in self._keys.values()}
        self._keys = gone | _read(raw)
        self._read_at = time.monotonic()


def _gone(key: StoredKey) -> StoredKey:
    return key.model_copy(update={"revoked_at": key.revoked_at or time.time()})


def _read(raw: dict[bytes, bytes]) -> dict[str, StoredKey]:
    """Keys by id; one that cannot be read is there, and opens nothing."""
    found: dict[str, StoredKey] = {}
    for key_id, value in raw.items():
        try:
            key = StoredKey.model_validate_json(value)
        except ValidationError:
            at = key_id.decode(errors="replace")
            key = StoredKey.model_construct(
                id=at, name=at, owner=at, sha256="", scopes=(), created_at=0.0, revoked_at=0.0
            )
        found[key_id.decode(errors="replace")] = key
    return found
