"""Request headers with a grammar of their own: Prefer, Idempotency-Key, Content-Type."""

import re
from collections.abc import Sequence

from starlette.datastructures import Headers

from app.errors import InvalidRequest, UnsupportedMediaType
from app.schemas.problems import FieldProblem

__all__ = [
    "KEY_PATTERN",
    "MAX_WAIT_S",
    "idempotency_key",
    "preferred_wait_s",
    "require_form",
    "require_json",
    "require_picture",
]

MAX_WAIT_S = 60
_MOST_KEY_CHARACTERS = 255
_PRINTABLE = re.compile(r"[\x20-\x7e]+")
_QUOTED = re.compile(r'"((?:[^"\\]|\\["\\])*)"')
# For the OpenAPI document: what `idempotency_key` accepts.
KEY_PATTERN = r"""^([!#-~]([ -~]{0,253}[!-~])?|"([ !#-\[\]-~]|\\["\\]){1,255}")$"""
_WAIT = re.compile(r'wait\s*=\s*("?)([0-9]{1,99})\1\s*(?:;.*)?', re.IGNORECASE | re.DOTALL)


def preferred_wait_s(values: Sequence[str]) -> int | None:
    """N of the first `wait=N` (RFC 7240), at most 60; what is not understood is ignored."""
    for preference in ",".join(values).split(","):
        name = preference.partition("=")[0].strip().lower()
        if name == "wait":
            found = _WAIT.fullmatch(preference.strip())
            return min(int(found[2]), MAX_WAIT_S) if found else None
    return None


def idempotency_key(values: Sequence[str]) -> str | None:
    """The key, bare or as a quoted string; both forms of one key are the same.

    Raises:
        InvalidRequest: it is empty, over 255 characters, not printable ASCII, or given twice.
    """
    if not values:
        return None
    value = values[0].strip()
    quoted = _QUOTED.fullmatch(value)
    if value.startswith('"') and not quoted:
        raise _bad_key('A key that starts with " should be a whole quoted string')
    key = re.sub(r"\\(.)", r"\1", quoted[1]) if quoted else value
    if len(set(values)) > 1:
        raise _bad_key("Two different keys; send one")
    if len(key) > _MOST_KEY_CHARACTERS:
        raise _bad_key(f"{len(key)} characters; the most is {_MOST_KEY_CHARACTERS}")
    if not _PRINTABLE.fullmatch(key):
        raise _bad_key("Should be 1 to 255 printable ASCII characters")
    return key


def _bad_key(message: str) -> InvalidRequest:
    problem = FieldProblem(pointer="/Idempotency-Key", message=message, place="header")
    return InvalidRequest("The Idempotency-Key header is not valid", errors=[problem])


def require_json(headers: Headers) -> None:
    """Accept `application/json` and `application/*+json`, in UTF-8 and not compressed.

    Raises:
        UnsupportedMediaType: the body is announced as something else, or as nothing.
    """
    given = headers.get("content-type", "")
    if given != "application/json":
        _require_json_type(given)
    _require_uncompressed(headers, "plain JSON")


def _require_json_type(given: str) -> None:
    media_type, *parameters = (part.strip().lower() for part in given.split(";"))
    if not re.fullmatch(r"application/(?:json|[a-z0-9.+-]+\+json)", media_type):
        raise UnsupportedMediaType(f"Content-Type {given[:100]!r} should be application/json")
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "charset" and value.strip(' "') not in ("utf-8", "utf8"):
            raise UnsupportedMediaType(f"charset {value[:40]!r} should be utf-8")


def require_form(headers: Headers) -> None:
    """Accept `multipart/form-data`, not compressed.

    Raises:
        UnsupportedMediaType: the body is announced as something else, or as nothing.
    """
    given = headers.get("content-type", "")
    if given.partition(";")[0].strip().lower() != "multipart/form-data":
        raise UnsupportedMediaType(f"Content-Type {given[:100]!r} should be multipart/form-data")
    _require_uncompressed(headers, "a plain form")


def require_picture(headers: Headers) -> str:
    """The media type of a picture's file: `image/png` or `image/webp`.

    Raises:
        UnsupportedMediaType: the body is announced as something else, or as nothing.
    """
    given = headers.get("content-type", "")
    media_type = given.partition(";")[0].strip().lower()
    if media_type not in ("image/png", "image/webp"):
        raise UnsupportedMediaType(
            f"Content-Type {given[:100]!r} should be image/png or image/webp"
        )
    _require_uncompressed(headers, "the file as it is")
    return media_type


def _require_uncompressed(headers: Headers, wanted: str) -> None:
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise UnsupportedMediaType(f"Compressed bodies are not read; send {wanted}")
