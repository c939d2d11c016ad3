"""Admission policy: which waiting jobs enter the engine now. Pure."""

from dataclasses import dataclass
from fractions import Fraction

from app.jobs.line import Line

__all__ = ["Candidate", "choose"]


@dataclass(frozen=True)
class Candidate:
    """A waiting job. `alone`: its last chance, after it was lost with its worker before.

    `share`: what its rows take of the device, a slot of each engine being one of its slots.
    """

    job_id: str
    share: Fraction
    alone: bool = False


def choose(line: Line[Candidate], *, now: float, free: Fraction, idle: bool) -> list[Candidate]:
    """The candidates to admit, in the order of the line (app/jobs/line.py), and out of it.

    A job enters when any share of the device is `free`; its further rows wait in the engine, before
    those of later jobs, so no slot stays empty and a job with many rows cannot be starved by small
    ones. A job that may be what killed its workers runs alone, in a worker that was `idle`, so that
    it takes no neighbour down again.
    """
    chosen: list[Candidate] = []
    while free > 0 and (candidate := line.head(now)) is not None:
        if candidate.alone and (chosen or not idle):
            break
        line.take(now)
        chosen.append(candidate)
        free -= candidate.share
        if candidate.alone:
            break
    return chosen
