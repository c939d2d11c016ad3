"""Signatures of webhooks, as Standard Webhooks has them (github.com/standard-webhooks)."""

import base64
import binascii
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime

from redis.asyncio import Redis
from standardwebhooks import Webhook

from app import keys
from app.jobs.joint import Joint
from app.kept_secret import kept_secret

__all__ = ["SECRET_PREFIX", "WebhookSecrets", "parse_secrets"]

SECRET_PREFIX = "whsec_"  # noqa: S105 - of every secret
_FEWEST_BYTES = 16
_DRAWN_BYTES = 32


def parse_secrets(text: str) -> tuple[bytes, ...]:
    """Keys of comma-separated secrets, each `whsec_` and base64.

    Raises:
        ValueError: an entry has another form or is too short; secrets are not quoted.
    """
    entries = [entry.strip() for entry in text.split(",") if entry.strip()]
    return tuple(_key(entry, at) for at, entry in enumerate(entries, start=1))


def _key(secret: str, at: int) -> bytes:
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except binascii.Error:
        key = b""
    if not secret.startswith(SECRET_PREFIX) or len(key) < _FEWEST_BYTES:
        raise ValueError(
            f"webhook_secrets: entry {at} should be {SECRET_PREFIX} and at least "
            f"{_FEWEST_BYTES} bytes as base64"
        )
    return key


class WebhookSecrets:
    """The keys that sign: from the settings, or one drawn once and kept in Redis.

    With several, each signs, so that receivers can change from one to the next at leisure.
    """

    def __init__(self, redis: Redis, given: Sequence[bytes]) -> None:
        self._redis = redis
        self._keys = tuple(given)
        self._drawing = Joint(self._draw)

    async def sign(self, message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
        """The three headers of a message."""
        at, text = datetime.fromtimestamp(timestamp, UTC), body.decode()
        return {
            "webhook-id": message_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": " ".join(
                [Webhook(key).sign(message_id, at, text) for key in await self.keys()]
            ),
        }

    async def keys(self) -> tuple[bytes, ...]:
        """The keys; drawn when none are there yet."""
        return self._keys or await self._drawing.done()

    async def _draw(self) -> tuple[bytes, ...]:
        fresh = base64.b64encode(secrets.token_bytes(_DRAWN_BYTES))
        kept = await kept_secret(self._redis, keys.WEBHOOK_SECRET, fresh)
        self._keys = (base64.b64decode(kept),)
        return self._keys
