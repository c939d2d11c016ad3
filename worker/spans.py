"""The spans of a job in a worker, made when it leaves: where its time went."""

import time

from app.jobs.tracing import Tracing
from worker.flights import Ending, Flight

__all__ = ["trace_flight"]


def trace_flight(tracing: Tracing, flight: Flight, ending: str) -> None:
    """One span for this worker's try at a job, and one for each phase of it.

    The first try's begins when the job was submitted, since its wait is part of it.
    """
    record, times, request = flight.record, flight.times, flight.record.request
    first = record.attempts == 1
    begin = min(record.created_at, times.claimed) if first else times.claimed
    span = tracing.start(
        "job",
        record.traceparent,
        "CONSUMER",
        {
            "avocat.job.id": record.id,
            "avocat.job.attempt": record.attempts,
            "avocat.job.priority": request.priority,
            "avocat.job.model": request.model,
            "avocat.job.images": request.n,
            "avocat.job.steps": request.steps,
            "avocat.job.sampler": request.sampler,
            "avocat.job.size": request.size,
            "avocat.worker": record.worker or "",
            "avocat.job.ending": ending,
        },
        at_s=begin,
    )
    waits = {"queue": (begin, times.claimed)} if first else {}
    for name, (since, until) in (waits | times.phases()).items():
        tracing.start(name, span.traceparent, at_s=since).end(at_s=until)
    failed = flight.ending in (Ending.FAIL, Ending.TRY_AGAIN)
    reason = flight.problem.type if flight.problem is not None else ending
    span.end(error=reason if failed else None, at_s=time.time())
