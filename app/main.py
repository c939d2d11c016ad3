"""The HTTP application."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio import to_thread
from fastapi import FastAPI

from app import __version__, documentation, errors, logs
from app.deps import make_services
from app.middleware import BodyLimit, HeadAsGet, RequestContext
from app.observing import Observing
from app.routes import events, health, images, jobs, metrics, models, openai, pages, submit, verify
from app.settings import Settings
from app.webhooks.assembly import make_dispatcher

__all__ = ["create_app"]


def create_app(settings: Settings | None = None) -> FastAPI:
    """Build the application; nothing is connected until it is used.

    Without settings it is the whole process (`uvicorn --factory`): it reads them and sets up logs.
    """
    if settings is None:
        settings = Settings()
        logs.configure(settings.log_level, settings.log_json)
    services = make_services(settings)
    dispatcher = make_dispatcher(services)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await services.events.start()
        await dispatcher.start()
        try:
            yield
        finally:
            await dispatcher.close()
            await services.events.close()
            await services.redis.aclose()
            await to_thread.run_sync(services.tracing.close)

    app = FastAPI(
        title="Avocat",
        version=__version__,
        lifespan=lifespan,
        openapi_url=None,  # served by app.routes.pages
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.services = services
    app.state.stopping = False  # as the server says
    for part in (submit, jobs, events, openai, images, verify, models, health, metrics, pages):
        app.include_router(part.router)
    pages.install(app)
    errors.install(app)
    documentation.install(app, key_needed=not services.authenticator.open)
    # The last one added sees requests first.
    app.add_middleware(HeadAsGet)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes, elsewhere={verify.PATH})
    app.add_middleware(RequestContext)
    app.add_middleware(Observing, metrics=services.metrics, tracing=services.tracing)
    return app
