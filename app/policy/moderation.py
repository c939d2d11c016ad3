"""Asking somebody else about a prompt: an endpoint of the form of OpenAI's moderation API.

POST URL  {"input": ["the prompt", "the negative prompt"]}
answers   {"results": [{"flagged": true, "categories": {"violence": true, …}}, …]}
"""

from typing import Final

import httpx
import structlog
from pydantic import BaseModel, Field, ValidationError

from app.policy.blocklist import PolicyError

__all__ = ["Moderation"]

_log = structlog.get_logger()
_MOST_BYTES: Final = 1 << 20


class _Result(BaseModel):
    flagged: bool
    categories: dict[str, bool | None] = Field(default_factory=dict)


class _Answer(BaseModel):
    results: list[_Result] = Field(min_length=1)


class Moderation:
    """A client of one endpoint; made when it is first used."""

    def __init__(self, url: str, token: str | None, timeout_s: float) -> None:
        self._url = url
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._timeout_s = timeout_s
        self._client: httpx.AsyncClient | None = None

    async def flagged(self, texts: list[str]) -> list[str] | None:
        """The categories of what is flagged, maybe none; None where nothing is.

        Raises:
            PolicyError: no usable answer within the time.
        """
        if self._client is None:
            self._client = httpx.AsyncClient(timeout=self._timeout_s, follow_redirects=False)
        try:
            answer = await self._client.post(
                self._url, json={"input": texts}, headers=self._headers
            )
            answer.raise_for_status()
            found = _Answer.model_validate_json(answer.content[:_MOST_BYTES])
        except (httpx.HTTPError, ValidationError) as fault:
            reason = type(fault).__name__  # the rest may quote what was sent
            raise PolicyError(f"the moderation endpoint gave no answer ({reason})") from fault
        hits = [result for result in found.results if result.flagged]
        if not hits:
            return None
        return sorted({name for hit in hits for name, is_so in hit.categories.items() if is_so})

    async def close(self) -> None:
        """Close all connections."""
        if self._client is not None:
            await self._client.aclose()
