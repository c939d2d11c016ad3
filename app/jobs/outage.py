"""Redis away and back: waits grow, and each change is logged once, for API and workers."""

import structlog

__all__ = ["Outage"]

_log = structlog.get_logger()
_FIRST_WAIT_S = 0.1
_LONGEST_WAIT_S = 2.0
_MOST_SAID = 5  # of one outage


class Outage:
    """Whether Redis fails us, and when to try again. Times are monotonic seconds."""

    def __init__(self, what: str = "Redis") -> None:
        """`what` fails, in the words of the log."""
        self._what = what
        self._wait_s = 0.0
        self._retry_at = float("-inf")
        self._said: set[str] = set()

    def wait_s(self, now: float) -> float:
        """Seconds until Redis should be tried again; 0 when it should be now."""
        return max(0.0, self._retry_at - now)

    def failed(self, fault: Exception, now: float) -> None:
        """Redis could not be reached, or refused a command."""
        self._wait_s = min(max(2 * self._wait_s, _FIRST_WAIT_S), _LONGEST_WAIT_S)
        self._retry_at = now + self._wait_s
        reason = str(fault) or type(fault).__name__
        # One outage resets, refuses and times out by turns: each is said once.
        if reason not in self._said and len(self._said) < _MOST_SAID:
            self._said.add(reason)
            _log.warning(f"{self._what} fails; going on, and trying again", reason=reason)

    def over(self) -> None:
        """Redis did all that it was asked."""
        if self._wait_s:
            _log.info(f"{self._what} is back")
        self._wait_s = 0.0
        self._said.clear()
