"""The function that every queued job names."""

from typing import NoReturn

__all__ = ["generate"]


def generate(job_id: str) -> NoReturn:
    """Stand for "draw this job"; `python -m worker` draws it in its engine and never calls this.

    Raises:
        RuntimeError: always: a stock RQ worker took the job.
    """
    raise RuntimeError(
        f"job {job_id!r} was taken by a stock RQ worker; start `avocat worker` instead"
    )
