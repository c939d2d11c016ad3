"""Why a job failed, in the words its owner reads."""

import re

from app.jobs.record import Problem

__all__ = [
    "entry_invalid",
    "invalid_job",
    "model_not_loaded",
    "model_not_served",
    "not_drawn",
    "not_read",
    "not_stored",
    "timed_out",
    "worker_lost",
]


def invalid_job(reason: str) -> Problem:
    """The request cannot be drawn by this model."""
    return _problem("invalid-job", "The job cannot be drawn", 422, reason)


def model_not_served(name: str) -> Problem:
    """No live worker has the model."""
    detail = f"No running worker serves the model {name!r} any more."
    return _problem("model-not-served", "The model is not served", 503, detail)


def model_not_loaded(name: str, reason: str) -> Problem:
    """Those workers that have its files could not load it."""
    # Where files lie on the server is not for the owner.
    shown = re.sub(r"'/(?:[^'/]*/)*([^'/]*)'", r"'\1'", reason)
    detail = f"The model {name!r} could not be loaded: {shown}."
    return _problem("model-not-loaded", "The model could not be loaded", 503, detail)


def not_drawn(reason: str) -> Problem:
    """The network's output was broken."""
    detail = f"The picture could not be computed: {reason}."
    return _problem("generation-failed", "The picture could not be computed", 500, detail)


def not_stored() -> Problem:
    """Storage refused an image; the reason is for the operator's log, not for the owner."""
    detail = "The picture was drawn, but the server could not store it."
    return _problem("storage-failed", "The picture could not be stored", 507, detail)


def not_read() -> Problem:
    """Storage did not give what the job starts from."""
    detail = "The server could not read the picture that the job starts from."
    return _problem("storage-failed", "The picture could not be read", 507, detail)


def timed_out(timeout_s: float) -> Problem:
    """It ran for too long."""
    detail = f"The job was stopped after {timeout_s:g} s, the longest a job may run here."
    return _problem("job-timeout", "The job took too long", 504, detail)


def worker_lost(attempts: int) -> Problem:
    """Every worker that took it ended before it was done."""
    detail = f"The job was started {attempts} times and each time its worker failed."
    return _problem("worker-lost", "The worker failed", 500, detail)


def entry_invalid() -> Problem:
    """Its entry in the queue cannot be used; the reason is for the operator's log."""
    detail = "The job's entry in the queue is damaged, so it cannot be run; submit it again."
    return _problem("queue-entry-invalid", "The queue entry cannot be run", 500, detail)


def _problem(slug: str, title: str, status: int, detail: str) -> Problem:
    return Problem(type=f"/problems/{slug}", title=title, status=status, detail=detail)
