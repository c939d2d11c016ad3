"""Who calls: API keys from the settings, and those of `avocat keys`."""

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field

from app.api_keys import KeyRing, Limits, Scope
from app.errors import Forbidden, Unauthorized
from app.settings import ApiKey

__all__ = ["ANONYMOUS", "Authenticator", "Caller"]

_ALL_BUT_HIGH = frozenset({Scope.SUBMIT, Scope.READ})


@dataclass(frozen=True)
class Caller:
    """Who asks: jobs and images belong to `owner`. `key` names the key, '' for none."""

    owner: str
    scopes: frozenset[Scope] = _ALL_BUT_HIGH
    key: str = ""
    limits: Limits = field(default_factory=Limits)

    def require(self, scope: Scope) -> None:
        """Raise Forbidden when the key may not do that."""
        if scope not in self.scopes:
            raise Forbidden(f"This needs an API key with the scope '{scope}'")

    def require_priority(self, priority: str) -> None:
        """Raise Forbidden when the caller may not use this priority."""
        if priority == "high" and Scope.HIGH not in self.scopes:
            raise Forbidden("Priority 'high' needs an API key that allows it; use 'normal'")

    def sees(self, owner: str) -> bool:
        """Whether jobs and images of that owner are theirs to see and to cancel."""
        return owner == self.owner or Scope.ADMIN in self.scopes


ANONYMOUS = Caller("anonymous")


class Authenticator:
    """Checks `Authorization: Bearer …` in constant time; without keys all are anonymous."""

    def __init__(
        self, keys: Sequence[ApiKey], ring: KeyRing, *, always_needed: bool = False
    ) -> None:
        """`keys`: those of the settings; `always_needed`: also while there is none at all."""
        self._callers = [(_digest(key.secret), _configured(key)) for key in keys]
        self._ring = ring
        self._closed = always_needed or bool(keys)

    async def caller(self, authorization: str | None) -> Caller:
        """Who sent this `Authorization` header.

        Raises:
            Unauthorized: keys are needed, and this is none of them.
        """
        if not self._closed:
            self._closed = await self._ring.has_keys()  # and stays so
        if not self._closed:
            return ANONYMOUS
        if authorization is None:
            raise Unauthorized("An API key is needed: send `Authorization: Bearer KEY`")
        scheme, _, secret = authorization.partition(" ")
        if scheme.lower() != "bearer":
            raise Unauthorized("The Authorization header should be `Bearer KEY`")
        found = await self._found(secret.strip())
        if found is None:
            raise Unauthorized("The API key is unknown, or has expired or been revoked")
        return found

    async def _found(self, secret: str) -> Caller | None:
        given, found = _digest(secret), None
        for digest, caller in self._callers:  # all of them: time tells nothing
            if hmac.compare_digest(digest, given):
                found = caller
        if found is not None:
            return found
        key = await self._ring.find(secret)
        if key is None:
            return None
        return Caller(key.owner, frozenset(key.scopes), key.id, key.limits)


def _configured(key: ApiKey) -> Caller:
    scopes = _ALL_BUT_HIGH | {Scope.HIGH} if key.high_priority else _ALL_BUT_HIGH
    return Caller(key.name, scopes, key.name)


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
