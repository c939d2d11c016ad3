"""When to try again, and after how long."""

import random
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

__all__ = ["Retries", "retry_after_s"]

_PASSING = (429, 502, 503, 504)


@dataclass(frozen=True)
class Retries:
    """Exponential back-off with full jitter, never sooner than `Retry-After` says.

    Args:
        count: tries after the first; 0: never again.
        first_s: longest pause before the second try; it doubles with each.
        most_s: longest pause of the back-off.
        patience_s: a `Retry-After` beyond this is not waited for.
    """

    count: int = 5
    first_s: float = 0.5
    most_s: float = 20.0
    patience_s: float = 120.0

    def pause_s(self, tried: int, answer: httpx.Response | httpx.RequestError) -> float | None:
        """Seconds to wait after `tried` tries ended in `answer`; None: do not try again."""
        if tried > self.count or (isinstance(answer, httpx.Response) and not _passes(answer)):
            return None
        longest = min(self.most_s, self.first_s * 2 ** (tried - 1))
        jitter = random.uniform(0, longest)  # noqa: S311 (spreads clients, guards nothing)
        asked = retry_after_s(answer) if isinstance(answer, httpx.Response) else None
        if asked is None:
            return jitter
        # On top of what was asked for: else all clients that were refused come back at once.
        return asked + min(jitter, 1.0) if asked <= self.patience_s else None


def _passes(answer: httpx.Response) -> bool:
    """Whether another try may end otherwise; the service knows where that would be in vain."""
    in_vain = answer.headers.get("X-Should-Retry", "").lower() == "false"
    return answer.status_code in _PASSING and not in_vain


def retry_after_s(response: httpx.Response) -> float | None:
    """`Retry-After` in seconds, from its number or its date."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None
