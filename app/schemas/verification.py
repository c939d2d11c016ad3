"""What is found when a picture is made again from its recipe."""

from typing import Literal

from pydantic import BaseModel, Field

from app.jobs.recipe import Recipe

__all__ = ["Verdict", "Verification"]

Verdict = Literal["identical", "different", "unverifiable"]


class Verification(BaseModel):
    """Whether a picture is what its recipe gives."""

    verdict: Verdict
    reason: str = Field(description="One sentence for people")
    recipe: Recipe | None = Field(description="As the picture has it: a claim, unless identical")
    fingerprint: str | None = Field(description="The recipe's: of the model, runtime and device")
    job_id: str | None = Field(description="The job that made it again; null: none was needed")
