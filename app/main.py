"""The HTTP application."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio import to_thread
from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from app import __version__, documentation, errors, logs
from app.deps import Services, make_services
from app.middleware import BodyLimit, HeadAsGet, HeaderLimit, RequestContext
from app.observing import Observing
from app.routes import (
    edits,
    events,
    health,
    images,
    jobs,
    metrics,
    models,
    openai,
    operation,
    pages,
    submit,
    verify,
)
from app.settings import Settings
from app.webhooks.assembly import make_dispatcher

__all__ = ["create_app"]

# Beyond what browsers let pages send and read anyway.
_ASKED_HEADERS = [
    *("Idempotency-Key", "If-None-Match", "If-Range", "Last-Event-ID", "Prefer", "Range"),
    *("X-Request-Id", "traceparent"),
]
_ANSWERED_HEADERS = [
    *("Content-Range", "ETag", "Idempotency-Replayed", "Location", "Preference-Applied"),
    *("RateLimit", "RateLimit-Policy", "Retry-After", "X-Request-Id"),
]


def create_app(settings: Settings | None = None) -> FastAPI:
    """Build the application; nothing is connected until it is used.

    Without settings it is the whole process (`uvicorn --factory`): it reads them and sets up logs.
    """
    if settings is None:
        settings = Settings()
        logs.configure(settings.log_level, settings.log_json)
    services = make_services(settings)
    app = FastAPI(
        title="Avocat",
        version=__version__,
        lifespan=_lifespan,
        openapi_url=None,  # served by app.routes.pages
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # Observing's
    )
    app.state.services = services
    app.state.stopping = False  # as the server says
    _add_routes(app)
    errors.install(app)
    documentation.install(app, key_needed=bool(settings.keys) or settings.require_keys)
    _add_middleware(app, settings, services)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    services: Services = app.state.services
    dispatcher = make_dispatcher(services)
    await services.events.start()
    await dispatcher.start()
    try:
        yield
    finally:
        await dispatcher.close()
        await services.events.close()
        await services.policy.close()
        await services.redis.aclose()
        await to_thread.run_sync(services.tracing.close)
        await to_thread.run_sync(services.audit.close)


def _add_routes(app: FastAPI) -> None:
    app.router.routes.extend(submit.router.routes)  # found without asking further routers
    for part in (
        jobs,
        events,
        openai,
        edits,
        images,
        verify,
        models,
        operation,
        health,
        metrics,
        pages,
    ):
        app.include_router(part.router)
    pages.install(app)


def _add_middleware(app: FastAPI, settings: Settings, services: Services) -> None:
    """The last one added sees requests first."""
    app.add_middleware(HeadAsGet)
    elsewhere = {submit.PATH, verify.PATH, *edits.PATHS}
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes, elsewhere=elsewhere)
    if settings.cors_origins:
        _let_pages_call(app, settings.cors_origins)
    app.add_middleware(HeaderLimit)
    app.add_middleware(RequestContext)
    app.add_middleware(
        Observing, metrics=services.metrics, tracing=services.tracing, audit=services.audit
    )


def _let_pages_call(app: FastAPI, origins: str) -> None:
    """Let pages of these origins call the API with a key; cookies play no part here."""
    app.add_middleware(
        CORSMiddleware,
        allow_origins=[origin.strip() for origin in origins.split(",")],
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=["Authorization", "Content-Type", *_ASKED_HEADERS],
        expose_headers=_ANSWERED_HEADERS,
    )
