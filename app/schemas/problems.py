"""Problem details (RFC 9457) as clients see them."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["FieldProblem", "ProblemDetails"]


class FieldProblem(BaseModel):
    """One wrong part of a request."""

    model_config = ConfigDict(populate_by_name=True)

    pointer: str = Field(description="JSON pointer into the body; `/name` for a header or query")
    message: str
    place: Literal["body", "query", "header"] = Field("body", alias="in")


class ProblemDetails(BaseModel):
    """Every error answer."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(description="URL path under /problems/, stable: decide by this")
    title: str
    status: int
    detail: str
    instance: str = Field(description="The request id, also in `X-Request-Id`")
    errors: list[FieldProblem] | None = Field(None, description="With 422: all wrong fields")
