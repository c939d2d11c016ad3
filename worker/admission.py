"""Admission policy: which waiting jobs enter the engine now. Pure."""

from dataclasses import dataclass

from app.jobs.line import Line

__all__ = ["Candidate", "choose"]


@dataclass(frozen=True)
class Candidate:
    """A waiting job. `alone`: its last chance, after it was lost with its worker before."""

    job_id: str
    rows: int
    alone: bool = False


def choose(line: Line[Candidate], *, now: float, free: int, idle: bool) -> list[Candidate]:
    """The candidates to admit, in the order of the line (app/jobs/line.py), and out of it.

    A job enters when all of its rows fit into the `free` slots, or when the engine is `idle`.
    None overtakes one that has to wait, so a job with many rows cannot be starved by small ones. A
    job that may be what killed its workers runs alone, so that it takes no neighbour down again.
    """
    chosen: list[Candidate] = []
    while (candidate := line.head(now)) is not None:
        first = idle and not chosen
        if not first and (candidate.alone or candidate.rows > free):
            break
        line.take(now)
        chosen.append(candidate)
        free -= candidate.rows
        if candidate.alone:
            break
    return chosen
