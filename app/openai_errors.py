"""Problems in the form of OpenAI's API, for the routes that speak it.

The statuses stay those of the wire contract: 422, where OpenAI itself answers 400.
"""

from enum import Enum, auto

from app.schemas.openai import ErrorAnswer, ErrorDetails
from app.schemas.problems import ProblemDetails

__all__ = ["Form", "form_of", "openai_error"]

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


_SPOKEN = frozenset(f"/v1/images/{name}" for name in ("generations", "edits", "variations"))


class Form(Enum):
    """In which form a route tells its errors."""

    PROBLEM = auto()
    OPENAI = auto()
    BOTH = auto()  # problems with OpenAI's `error` as a further member


def form_of(path: str) -> Form:
    """The form of the route at `path`."""
    if path in _SPOKEN:
        return Form.OPENAI
    return Form.BOTH if path.startswith("/v1/models") else Form.PROBLEM


def openai_error(problem: ProblemDetails) -> ErrorAnswer:
    """The same error; `code` is the last part of the problem's type."""
    fields = problem.errors or []
    named = "\n".join(f"{field.pointer.lstrip('/') or 'body'}: {field.message}" for field in fields)
    other = "server_error" if problem.status >= 500 else "invalid_request_error"
    return ErrorAnswer(
        error=ErrorDetails(
            message=named or problem.detail,
            type=_TYPES.get(problem.status, other),
            param=fields[0].pointer.lstrip("/") or None if fields else None,
            code=problem.type.rpartition("/")[2].replace("-", "_"),
        )
    )
