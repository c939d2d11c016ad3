"""What routes are given: services made once per application, and the caller of this request."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Annotated, cast

from fastapi import Depends, Request
from redis.asyncio import Redis

from app.api_keys import ALL_DAY_S, KeyRing, Scope
from app.audit import Audit, open_audit
from app.auth import Authenticator, Caller
from app.errors import JobNotFound, QuotaExceeded
from app.jobs.connection import connect_async
from app.jobs.events import EventHub
from app.jobs.ids import is_job_id
from app.jobs.origin import CURRENT
from app.jobs.outlook import Outlooks
from app.jobs.reader import JobReader, ModelCards
from app.jobs.record import JobRecord
from app.jobs.submit import Submitter
from app.jobs.tracing import Tracing
from app.limits import RateLimiter
from app.metrics import Metrics
from app.middleware import add_header
from app.policy.checking import Policy
from app.settings import Settings
from app.signing import Signer
from app.storage.base import ImageStorage
from app.storage.opening import open_storage
from app.webhooks.signing import WebhookSecrets
from app.webhooks.targets import Targets

__all__ = [
    "CallerDep",
    "ChangerDep",
    "OperatorDep",
    "Services",
    "ServicesDep",
    "SubmitterDep",
    "get_caller",
    "make_services",
    "own_record",
    "services_of",
    "submitting_caller",
]

_STORAGE_PATIENCE_S = 5.0  # somebody waits for the answer


@dataclass(frozen=True)
class Services:
    """Everything a request may need; nothing here connects before it is used."""

    settings: Settings
    redis: Redis
    authenticator: Authenticator
    reader: JobReader
    submitter: Submitter
    cards: ModelCards
    events: EventHub
    outlooks: Outlooks
    limiter: RateLimiter
    signer: Signer
    storage: ImageStorage
    targets: Targets
    webhook_secrets: WebhookSecrets
    metrics: Metrics
    audit: Audit
    policy: Policy
    tracing: Tracing
    # Few pictures are decoded at a time, so that they take little memory.
    decoding: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(2))
    # And few bodies with pictures are held.
    uploads: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(4))


def make_services(settings: Settings) -> Services:
    """Build all services on one Redis client."""
    redis = connect_async(settings.resolved_redis_url)
    outlooks = Outlooks(redis, settings.patience_s)
    key = settings.signing_key
    metrics = Metrics()
    return Services(
        settings=settings,
        redis=redis,
        authenticator=Authenticator(
            settings.keys, KeyRing(redis), always_needed=settings.require_keys
        ),
        reader=JobReader(redis),
        submitter=Submitter(redis, settings),
        cards=ModelCards(redis),
        events=EventHub(redis, outlooks),
        outlooks=outlooks,
        limiter=RateLimiter(redis, settings.rate_limit_per_minute),
        signer=Signer(
            redis, key.get_secret_value() if key is not None else None, settings.image_url_ttl_s
        ),
        storage=open_storage(settings, patience_s=_STORAGE_PATIENCE_S),
        targets=Targets.parse(settings.webhook_allow),
        webhook_secrets=WebhookSecrets(redis, settings.webhook_keys),
        metrics=metrics,
        policy=Policy(settings, metrics),
        audit=open_audit(settings),
        tracing=Tracing(settings.otlp_endpoint, "avocat-api"),
    )


def services_of(request: Request) -> Services:
    """The application's services; for those to whom a declared dependency is too dear."""
    return cast(Services, request.app.state.services)


async def get_services(request: Request) -> Services:
    """The application's services."""
    return services_of(request)


ServicesDep = Annotated[Services, Depends(get_services)]


async def own_record(
    services: Services,
    caller: Caller,
    job_id: str,
    read: Callable[[str], Awaitable[JobRecord | None]] | None = None,
) -> JobRecord:
    """The record of a job of the caller's; `read` is another way to it than the reader's.

    Raises:
        JobNotFound: there is none, or it is another's.
    """
    read = read or services.reader.get
    record = await read(job_id) if is_job_id(job_id) else None
    CURRENT.set(CURRENT.get().of(job_id[:64]))
    if record is None or not caller.sees(record.owner):
        raise JobNotFound(f"There is no job {job_id[:64]!r} of yours; it may have expired")
    return record


async def get_caller(request: Request, scope: Scope = Scope.READ) -> Caller:
    """Who asks; raises Unauthorized, and Forbidden where the key has not that scope."""
    given = request.headers.get("authorization")
    caller = await services_of(request).authenticator.caller(given)
    request.scope["state"]["caller"] = caller
    caller.require(scope)
    return caller


async def reading_caller(request: Request) -> Caller:
    """Who looks at jobs, images or models."""
    return await get_caller(request)


async def changing_caller(request: Request) -> Caller:
    """Who changes jobs of theirs; not counted."""
    return await get_caller(request, Scope.SUBMIT)


async def operating_caller(request: Request) -> Caller:
    """Who looks after the service: any caller where there are no keys, else one with `admin`."""
    caller = await services_of(request).authenticator.caller(request.headers.get("authorization"))
    request.scope["state"]["caller"] = caller
    if caller.key:
        caller.require(Scope.ADMIN)
    return caller


CallerDep = Annotated[Caller, Depends(reading_caller)]
ChangerDep = Annotated[Caller, Depends(changing_caller)]
OperatorDep = Annotated[Caller, Depends(operating_caller)]


async def submitting_caller(request: Request) -> Caller:
    """Who submits; counts it against the key's rate, and raises QuotaExceeded over it."""
    caller = await get_caller(request, Scope.SUBMIT)
    own = caller.limits.per_minute
    who = caller.owner if own is None else f"key:{caller.key}"
    state = await services_of(request).limiter.take(who, own)
    policies = [] if state is None else [state.headers["RateLimit-Policy"]]
    if caller.limits.per_day is not None:
        policies.append(f'"daily";q={caller.limits.per_day};w={ALL_DAY_S}')
    if policies:
        add_header(request, "RateLimit-Policy", ", ".join(policies))
    if state is None:
        return caller
    add_header(request, "RateLimit", state.headers["RateLimit"])
    if not state.allowed:
        raise QuotaExceeded(
            f"{state.limit} submissions in 60 s are reached; go on in {state.reset_s} s",
            headers={"Retry-After": str(state.reset_s)},
            extra={"violated-policies": ["default"]},
        )
    return caller


SubmitterDep = Annotated[Caller, Depends(submitting_caller)]
