"""Who calls: API keys from the settings."""

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass

from app.errors import Forbidden, Unauthorized
from app.settings import ApiKey

__all__ = ["ANONYMOUS", "Authenticator", "Caller"]


@dataclass(frozen=True)
class Caller:
    """Who asks: jobs and images belong to `owner`."""

    owner: str
    high_priority: bool = False

    def require_priority(self, priority: str) -> None:
        """Raise Forbidden when the caller may not use this priority."""
        if priority == "high" and not self.high_priority:
            raise Forbidden("Priority 'high' needs an API key that allows it; use 'normal'")


ANONYMOUS = Caller("anonymous")


class Authenticator:
    """Checks `Authorization: Bearer …` in constant time; without keys all are anonymous."""

    def __init__(self, keys: Sequence[ApiKey]) -> None:
        self._callers = [(_digest(key.secret), Caller(key.name, key.high_priority)) for key in keys]

    @property
    def open(self) -> bool:
        """Whether no key is needed."""
        return not self._callers

    def caller(self, authorization: str | None) -> Caller:
        """Who sent this `Authorization` header.

        Raises:
            Unauthorized: keys are configured, and this is none of them.
        """
        if self.open:
            return ANONYMOUS
        if authorization is None:
            raise Unauthorized("An API key is needed: send `Authorization: Bearer KEY`")
        scheme, _, secret = authorization.partition(" ")
        if scheme.lower() != "bearer":
            raise Unauthorized("The Authorization header should be `Bearer KEY`")
        given, found = _digest(secret.strip()), None
        for digest, caller in self._callers:  # all of them: time tells nothing
            if hmac.compare_digest(digest, given):
                found = caller
        if found is None:
            raise Unauthorized("The API key is unknown")
        return found


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
