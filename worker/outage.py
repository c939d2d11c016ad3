"""Redis away and back: waits grow, and each change is logged once."""

import structlog
from redis.exceptions import RedisError

__all__ = ["Outage"]

_log = structlog.get_logger()
_FIRST_WAIT_S = 0.1
_LONGEST_WAIT_S = 2.0


class Outage:
    """Whether Redis fails us, and when to try again. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._wait_s = 0.0
        self._retry_at = float("-inf")
        self._said = ""

    def wait_s(self, now: float) -> float:
        """Seconds until Redis should be tried again; 0 when it should be now."""
        return max(0.0, self._retry_at - now)

    def failed(self, fault: RedisError, now: float) -> None:
        """Redis could not be reached, or refused a command."""
        self._wait_s = min(max(2 * self._wait_s, _FIRST_WAIT_S), _LONGEST_WAIT_S)
        self._retry_at = now + self._wait_s
        if self._said != str(fault):
            self._said = str(fault)
            _log.warning("Redis fails; going on, and trying again", reason=self._said)

    def over(self) -> None:
        """Redis did all that it was asked."""
        if self._wait_s:
            _log.info("Redis is back")
        self._wait_s, self._said = 0.0, ""
