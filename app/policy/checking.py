"""Whether a prompt may be drawn: first the blocklist, then the moderation endpoint."""

import structlog

from app import errors
from app.metrics import Metrics
from app.policy.blocklist import Blocklist, PolicyError
from app.policy.moderation import Moderation
from app.settings import Settings

__all__ = ["Policy"]

_log = structlog.get_logger()
_RETRY_S = "5"


class Policy:
    """Refuses prompts; with neither a list nor an endpoint, none."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        """Read the blocklist.

        Raises:
            PolicyError: it cannot be read.
        """
        file, url, token = (
            settings.blocklist,
            settings.moderation_url,
            settings.moderation_token,
        )
        secret = None if token is None else token.get_secret_value()
        self._blocklist = None if file is None else Blocklist(file)
        self._moderation = (
            None if url is None else Moderation(url, secret, settings.moderation_timeout_s)
        )
        self._fail_open = settings.moderation_fail_open
        self._metrics = metrics

    async def check(self, prompt: str, negative_prompt: str | None) -> None:
        """Let a prompt pass.

        Raises:
            PolicyViolation: it may not be drawn.
            Unavailable: nobody could say, and that is no leave.
        """
        texts = [text for text in (prompt, negative_prompt) if text]
        if self._blocklist is not None:
            for text in texts:
                if (found := self._blocklist.found(text)) is not None:
                    raise self._refusal("blocklist", f"It holds {found!r}")
        if self._moderation is not None and texts:  # a variation has none
            await self._ask(self._moderation, texts)

    async def close(self) -> None:
        """Let go of connections."""
        if self._moderation is not None:
            await self._moderation.close()

    async def _ask(self, moderation: Moderation, texts: list[str]) -> None:
        try:
            categories = await moderation.flagged(texts)
        except PolicyError as fault:
            self._metrics.moderation_failed()
            _log.warning("a prompt could not be moderated", reason=str(fault))
            if self._fail_open:
                return
            raise errors.Unavailable(
                "Prompts cannot be checked at the moment, and none is drawn unchecked; try again "
                "soon",
                headers={"Retry-After": _RETRY_S},
            ) from fault
        if categories is not None:
            named = f" ({', '.join(categories)})" if categories else ""
            raise self._refusal("moderation", f"Moderation has flagged it{named}")

    def _refusal(self, by: str, reason: str) -> errors.PolicyViolation:
        self._metrics.refused_prompt(by)
        return errors.PolicyViolation(f"This service does not draw that prompt. {reason}")
