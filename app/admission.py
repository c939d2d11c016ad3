"""From a draft to a job in the queue: the one way in, whichever route a request came by."""

import hashlib
import json
import math
import time
from dataclasses import dataclass

import structlog

from app import errors
from app.api_keys import ALL_DAY_S
from app.auth import Caller
from app.deps import Services
from app.jobs import submit
from app.jobs.ids import new_job_id
from app.jobs.models import ModelCard
from app.jobs.origin import CURRENT
from app.jobs.record import JobRecord, JobRequest
from app.jobs.repeats import repeat_key
from app.repeats import submit_or_answer
from app.resolve import Draft, resolve
from app.schemas.jobs import JobCreate
from app.webhooks.targets import Refused

__all__ = ["Admission", "admit"]

_FULL_RETRY_S = "5"


@dataclass(frozen=True)
class Admission:
    """A job that was taken in: `record` as it was made, unless it is a `replayed` one."""

    job_id: str
    record: JobRecord
    ahead: int = 0  # jobs that will be taken before it

    @property
    def replayed(self) -> bool:
        """Whether the Idempotency-Key led to a job made before."""
        return self.job_id != self.record.id


async def admit(
    services: Services,
    caller: Caller,
    draft: Draft,
    *,
    idempotency_key: str | None = None,
    previews: int = 0,
) -> Admission:
    """Resolve and enqueue, or answer from storage; `previews` of each picture are wanted.

    Raises:
        ApiError: something is wrong with the request, or there is no room for it.
    """
    card = await _card(services, draft)
    _refuse_webhook(services, draft)
    resolved = resolve(draft, card)
    caller.require_priority(resolved.priority)
    await services.policy.check(resolved.prompt, resolved.negative_prompt)
    record = _new_record(services, caller.owner, resolved, draft.fields.metadata, previews)
    unique = (
        submit.Idempotency(idempotency_key, _fingerprint(draft.fields))
        if idempotency_key is not None
        else None
    )
    repeats = _repeats(draft, record, card)
    quota = submit.Quota(caller.key, caller.limits.active, caller.limits.per_day)
    outcome, record = await submit_or_answer(services, record, unique, repeats, quota)
    ahead = outcome.ahead if isinstance(outcome, submit.Accepted) else 0
    admission = Admission(_admitted(outcome), record, ahead)
    structlog.contextvars.bind_contextvars(job_id=admission.job_id)
    what = "replayed" if admission.replayed else "cached" if record.cached else "accepted"
    services.metrics.submitted(record.request.priority, what)
    return admission


def _refuse_webhook(services: Services, draft: Draft) -> None:
    """Note what is wrong with the address; what it resolves to is judged when it is called."""
    if draft.fields.webhook_url is None:
        return
    try:
        services.targets.check_url(draft.fields.webhook_url)
    except Refused as fault:
        draft.refuse("webhook_url", str(fault))


def _repeats(draft: Draft, record: JobRecord, card: ModelCard) -> str | None:
    """Where jobs with the same pictures are found; a seed drawn just now has none."""
    fields = draft.fields
    if not fields.cache or fields.seed is None or not card.fingerprint:
        return None
    return repeat_key(record.owner, record.request, card.fingerprint)


async def _card(services: Services, draft: Draft) -> ModelCard:
    name = draft.fields.model
    cards = await services.cards.all()
    card = services.cards.default if name is None else cards.get(name)
    if card is not None:
        return card
    draft.check()
    if not cards:
        raise errors.Unavailable(
            "No worker has announced a model yet; try again soon", headers={"Retry-After": "5"}
        )
    known = ", ".join(repr(known) for known in cards)
    raise errors.ModelNotFound(f"There is no model {name!r}; known: {known}")


def _new_record(
    services: Services,
    owner: str,
    resolved: JobRequest,
    metadata: dict[str, str],
    previews: int,
) -> JobRecord:
    origin = CURRENT.get()
    now, retention_s = round(time.time(), 6), services.settings.retention_s  # as stored
    return JobRecord(
        id=new_job_id(now),
        owner=owner,
        created_at=now,
        expires_at=round(now + retention_s, 6),
        retention_s=retention_s,
        request=resolved,
        total_steps=resolved.steps,
        metadata=metadata,
        previews=previews,
        request_id=origin.request_id,
        traceparent=origin.traceparent,
    )


def _day_spent(pictures: int) -> errors.QuotaExceeded:
    """Nobody waits for midnight on one connection: `Retry-After` is a minute at most."""
    left_s = math.ceil(ALL_DAY_S - time.time() % ALL_DAY_S)
    return errors.QuotaExceeded(
        f"{pictures} pictures were asked for today with this key, and this job would make them "
        f"more than it may have; the day ends in {left_s} s (UTC)",
        headers={"Retry-After": str(min(60, left_s)), "RateLimit": f'"daily";r=0;t={left_s}'},
        extra={"violated-policies": ["daily"]},
    )


def _fingerprint(fields: JobCreate) -> str:
    """The same for bodies that say the same, however they are spaced and ordered."""
    given = fields.model_dump(mode="json", exclude_unset=True)
    return hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()


def _admitted(outcome: submit.Outcome) -> str:
    retry = {"Retry-After": _FULL_RETRY_S}
    match outcome:
        case submit.Accepted(job_id=job_id) | submit.Replayed(job_id):
            return job_id
        case submit.IdempotencyMismatch():
            raise errors.IdempotencyKeyReused(
                "This Idempotency-Key came with another body; use a new key for a new request"
            )
        case submit.QueueFull(waiting):
            raise errors.QueueFull(f"{waiting} jobs wait already; try again soon", headers=retry)
        case submit.TooManyActive(active):
            raise errors.QuotaExceeded(
                f"{active} of your jobs are queued or running, which is the most; let some end",
                headers=retry,
                extra={"violated-policies": ["concurrency"]},
            )
        case submit.DaySpent(pictures):
            raise _day_spent(pictures)
    raise ValueError(f"a submission ended in {outcome!r}")
