"""Admission policy: which waiting jobs enter the engine now. Pure."""

from dataclasses import dataclass
from fractions import Fraction

from app.jobs.line import Line

__all__ = ["SPARE_S", "Candidate", "choose"]

SPARE_S = 0.25


@dataclass(frozen=True)
class Candidate:
    """A waiting job. `alone`: its last chance, after it was lost with its worker before.

    `share`: what its rows take of the device, a slot of each engine being one of its slots.
    `since`: unix seconds it waits from.
    """

    job_id: str
    share: Fraction
    alone: bool = False
    since: float = 0.0


def choose(
    line: Line[Candidate], *, now: float, free: Fraction, hungry: Fraction, idle: bool
) -> list[Candidate]:
    """The candidates to admit, in the order of the line (app/jobs/line.py), and out of it.

    A job enters when any share of the device is `free`; its further rows wait in the engine, before
    those of later jobs, so no slot stays empty and a job with many rows cannot be starved by small
    ones. What is beyond the `hungry` share, which is computed at once, is there for the engine to
    choose from (app/jobs/order.py): such jobs enter only after `SPARE_S`, for another worker may
    have nothing to do. A job that may be what killed its workers runs alone, in a worker that was
    `idle`, so that it takes no neighbour down again.
    """
    chosen: list[Candidate] = []
    while free > 0 and (candidate := line.head(now)) is not None:
        if candidate.alone and (chosen or not idle):
            break
        if hungry <= 0 and now - candidate.since < SPARE_S:
            break
        line.take(now)
        chosen.append(candidate)
        free -= candidate.share
        hungry -= candidate.share
        if candidate.alone:
            break
    return chosen
