"""Admission policy: which waiting jobs enter the engine now. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Candidate", "choose"]


@dataclass(frozen=True)
class Candidate:
    """A waiting job. `alone`: its last chance, after it was lost with its worker before."""

    job_id: str
    rows: int
    alone: bool = False


def choose(candidates: Sequence[Candidate], *, free: int, idle: bool) -> list[Candidate]:
    """The candidates to admit, in the order given: priority first, oldest first within.

    A job enters when all of its rows fit into the `free` slots, or when the engine is `idle`.
    None overtakes one that has to wait, so a job with many rows cannot be starved by small ones. A
    job that may be what killed its workers runs alone, so that it takes no neighbour down again.
    """
    chosen: list[Candidate] = []
    for candidate in candidates:
        first = idle and not chosen
        if not first and (candidate.alone or candidate.rows > free):
            break
        chosen.append(candidate)
        free -= candidate.rows
        if candidate.alone:
            break
    return chosen
