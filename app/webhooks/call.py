"""One webhook call: a signed POST to one address."""

import asyncio
import email.utils
import ssl
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy

import httpx

from app import __version__
from app.schemas.jobs import JobObject
from app.schemas.webhooks import WebhookMessage
from app.webhooks.signing import WebhookSecrets
from app.webhooks.targets import Refused, Targets

__all__ = ["Answer", "Caller"]

_CALL_S = 15.0
_LONGEST_RETRY_AFTER_S = 6 * 3600.0


@dataclass(frozen=True)
class Answer:
    """How a call went. `reason` is for our own logs and holds nothing of the receiver's."""

    delivered: bool
    reason: str
    final: bool = False  # calling again would be no use
    retry_after_s: float | None = None


class Caller:
    """Calls webhooks; redirects are not followed and answers are not read."""

    def __init__(self, targets: Targets, secrets: WebhookSecrets) -> None:
        self._targets = targets
        self._secrets = secrets
        self._client = httpx.AsyncClient(
            trust_env=False,  # a proxy would resolve the name once more, and unwatched
            follow_redirects=False,
            # None are kept: who shares an address would be sent the other's.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
            timeout=_CALL_S,
            # A kept connection to an address would serve any name that resolves to it.
            limits=httpx.Limits(max_keepalive_connections=0),
            verify=ssl.create_default_context(),
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def call(self, url: str, job: JobObject) -> Answer:
        """Tell `url` of the end of a job.

        Raises:
            RedisError: the key could not be read.
        """
        body = _body(job)
        headers = await self._secrets.sign(f"msg_{job.id}", int(time.time()), body)
        try:
            async with asyncio.timeout(_CALL_S):
                return await self._post(url, body, headers)
        except Refused as fault:
            return Answer(False, f"refused: {fault}")
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as fault:
            return Answer(False, type(fault).__name__)

    async def _post(self, url: str, body: bytes, headers: dict[str, str]) -> Answer:
        parts = self._targets.check_url(url)
        address = await self._targets.resolve(parts)
        host = parts.hostname or ""
        given = httpx.URL(url)
        request = self._client.build_request(
            "POST",
            given.copy_with(host=address),
            content=body,
            headers=headers
            | {
                "Host": given.netloc.decode("ascii"),
                "Content-Type": "application/json",
                "User-Agent": f"Avocat/{__version__}",
            },
            extensions={"sni_hostname": host},
        )
        response = await self._client.send(request, stream=True)
        await response.aclose()
        return _read(response)


def _body(job: JobObject) -> bytes:
    message = WebhookMessage(
        type=f"job.{job.status.value}",
        timestamp=datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        data=job,
    )
    return message.model_dump_json().encode()


def _read(response: httpx.Response) -> Answer:
    status = response.status_code
    if response.is_success:
        return Answer(True, str(status))
    if status == httpx.codes.GONE:  # Standard Webhooks: the receiver wants no more
        return Answer(False, str(status), final=True)
    return Answer(False, str(status), retry_after_s=_retry_after_s(response))


def _retry_after_s(response: httpx.Response) -> float | None:
    text = response.headers.get("retry-after", "")
    if text.isdecimal():
        return min(float(text), _LONGEST_RETRY_AFTER_S)
    try:
        at = email.utils.parsedate_to_datetime(text)
        wait = at.timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(wait, 0.0), _LONGEST_RETRY_AFTER_S)
