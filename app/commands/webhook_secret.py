"""`avocat webhook-secret`: what receivers verify webhooks with."""

import asyncio
import base64

import typer
from redis.exceptions import RedisError

from app.commands.console import ExitCode, fail, read_settings
from app.jobs.connection import connect_async
from app.settings import Settings
from app.webhooks.signing import SECRET_PREFIX, WebhookSecrets

__all__ = ["webhook_secret"]


def webhook_secret() -> None:
    """Print the secrets that sign webhooks, one a line; give them to who receives webhooks.

    They are those of AVOCAT_WEBHOOK_SECRETS, or the one that is kept in Redis; it is drawn if
    there is none yet. The service must be running, for its Redis is asked.
    """
    try:
        found = asyncio.run(_keys(read_settings()))
    except (RedisError, OSError) as fault:
        fail(
            f"Redis does not answer ({type(fault).__name__}): is the service running?",
            ExitCode.UNREACHABLE,
        )
    for key in found:
        typer.echo(SECRET_PREFIX + base64.b64encode(key).decode())


async def _keys(settings: Settings) -> tuple[bytes, ...]:
    redis = connect_async(settings.resolved_redis_url)
    try:
        return await WebhookSecrets(redis, settings.webhook_keys).keys()
    finally:
        await redis.aclose()
