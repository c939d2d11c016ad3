"""Signed image URLs: an HMAC over name and expiry, so that `<img>` works without a key."""

import hashlib
import hmac
import math
import re
import secrets
import time

from redis.asyncio import Redis

from app import keys
from app.errors import SignatureExpired, SignatureInvalid
from app.jobs.joint import Joint
from app.jobs.record import JobRecord
from app.kept_secret import kept_secret

__all__ = ["Signer"]

_EXPIRES = re.compile(r"[0-9]{1,12}")
# A URL stays the same for a tenth of its life, so that two looks at one job agree.
_STABLE_SHARE = 0.1


class Signer:
    """Signs and checks. The key comes from the settings, or is drawn once and kept in Redis."""

    def __init__(self, redis: Redis, key: str | None, ttl_s: int) -> None:
        self._redis = redis
        self._key = key.encode() if key is not None else None
        self._ttl_s = ttl_s
        self._drawing = Joint(self._draw)

    async def urls(self, record: JobRecord) -> list[str]:
        """A signed path for each image of a job."""
        if not record.images:
            return []
        key, expires = await self._signing_key(), self._expires(record)
        return [
            f"/v1/images/{image.name}?expires={expires}"
            f"&signature={_signature(key, image.name, str(expires))}"
            for image in record.images
        ]

    async def check(self, name: str, expires: str | None, signature: str | None) -> int:
        """Accept a signature.

        Returns:
            When it expires, in unix seconds.

        Raises:
            SignatureInvalid: it is not ours for this name and time, or one of both is missing.
            SignatureExpired: it was ours.
        """
        if expires is None or signature is None or not _EXPIRES.fullmatch(expires):
            raise SignatureInvalid("A signed URL has `expires` and `signature`; use it as given")
        good = _signature(await self._signing_key(), name, expires)
        if not hmac.compare_digest(good.encode(), signature.encode("utf-8", "replace")):
            raise SignatureInvalid("The signature does not fit this URL; use it as given")
        if time.time() >= int(expires):
            raise SignatureExpired("This URL has expired; get the job again for a fresh one")
        return int(expires)

    def _expires(self, record: JobRecord) -> int:
        since = record.finished_at or 0.0
        step = self._ttl_s * _STABLE_SHARE
        age = math.floor((time.time() - since) / step) * step
        return math.ceil(min(since + age + self._ttl_s, record.expires_at))

    async def _signing_key(self) -> bytes:
        return self._key if self._key is not None else await self._drawing.done()

    async def _draw(self) -> bytes:
        fresh = secrets.token_hex(32).encode()
        self._key = await kept_secret(self._redis, keys.SIGNING_KEY, fresh)
        return self._key


def _signature(key: bytes, name: str, expires: str) -> str:
    return hmac.new(key, f"{name}\n{expires}".encode(), hashlib.sha256).hexdigest()
