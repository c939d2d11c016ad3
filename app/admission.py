"""From a draft to a job in the queue: the one way in, whichever route a request came by."""

import hashlib
import json
import time
from dataclasses import dataclass

from app import errors
from app.auth import Caller
from app.deps import Services
from app.inputs import discard_inputs, read_inputs, store_inputs, stored_inputs
from app.jobs import submit
from app.jobs.ids import new_job_id
from app.jobs.models import ModelCard
from app.jobs.origin import CURRENT
from app.jobs.record import JobRecord, JobRequest, StoredInput
from app.jobs.repeats import repeat_key
from app.refusals import refused
from app.repeats import submit_or_answer
from app.resolve import Draft, resolve
from app.schemas.jobs import JobCreate
from app.webhooks.targets import Refused

__all__ = ["Admission", "admit"]


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
    inputs = await read_inputs(services, caller, draft)
    resolved = resolve(draft, card, {role: one.sha256 for role, one in inputs.items()})
    caller.require_priority(resolved.priority)
    await services.policy.check(resolved.prompt, resolved.negative_prompt)
    job_id = new_job_id(now := round(time.time(), 6))  # as stored
    stored = stored_inputs(job_id, inputs)
    record = _new_record(services, caller.owner, resolved, draft, job_id, now, stored, previews)
    unique = (
        submit.Idempotency(idempotency_key, _fingerprint(draft.fields))
        if idempotency_key is not None
        else None
    )
    repeats = _repeats(draft, record, card)
    quota = submit.Quota(caller.key, caller.limits.active, caller.limits.per_day)
    if stored:
        await store_inputs(services, stored, inputs)
    # Where Redis is lost on the way, the job may be there: its inputs are then left to `avocat gc`.
    outcome, record = await submit_or_answer(services, record, unique, repeats, quota)
    if stored and outcome != submit.Accepted(record.id):
        await discard_inputs(services, stored)
    if isinstance(outcome, submit.Refusal):
        raise await refused(services, caller, outcome)
    if isinstance(outcome, submit.Repeats):
        raise TypeError(f"{outcome!r} was to be answered or submitted")
    ahead = outcome.ahead if isinstance(outcome, submit.Accepted) else 0
    admission = Admission(_admitted(outcome), record, ahead)
    _note(services, admission)
    return admission


def _note(services: Services, admission: Admission) -> None:
    CURRENT.set(CURRENT.get().of(admission.job_id))
    record = admission.record
    what = "replayed" if admission.replayed else "cached" if record.cached else "accepted"
    services.metrics.submitted(record.request.priority, what)


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
    draft: Draft,
    job_id: str,
    now: float,
    inputs: tuple[StoredInput, ...],
    previews: int,
) -> JobRecord:
    origin, retention_s = CURRENT.get(), services.settings.retention_s
    return JobRecord(
        id=job_id,
        owner=owner,
        created_at=now,
        expires_at=round(now + retention_s, 6),
        retention_s=retention_s,
        request=resolved,
        total_steps=resolved.taken,
        inputs=inputs,
        metadata=draft.fields.metadata,
        previews=previews,
        request_id=origin.request_id,
        traceparent=origin.traceparent,
    )


def _fingerprint(fields: JobCreate) -> str:
    """The same for bodies that say the same, however they are spaced and ordered."""
    given = fields.model_dump(mode="json", exclude_unset=True)
    return hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()


def _admitted(outcome: submit.Accepted | submit.Replayed | submit.IdempotencyMismatch) -> str:
    if isinstance(outcome, submit.IdempotencyMismatch):
        raise errors.IdempotencyKeyReused(
            "This Idempotency-Key came with another body; use a new key for a new request"
        )
    return outcome.job_id
