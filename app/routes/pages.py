"""Pages for people: the playground, and the API reference without any outside host."""

from contextlib import suppress
from importlib.resources import files
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse, Response
from fastapi.staticfiles import StaticFiles
from redis.exceptions import RedisError

from app.deps import ServicesDep
from app.documentation import with_sizes
from app.errors import INTERNAL, PROBLEMS, NotFound

__all__ = ["install", "router"]

router = APIRouter(include_in_schema=False)

_REFERENCE = "/docs/assets"
_WEB = str(files("app") / "web")
# Everything the page needs is on this server, but for pictures in a bucket; `data:`: previews.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:{bucket}; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# Swagger UI is started by a script in its page.
_REFERENCE_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_PAGE_HEADERS = {
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class _Assets(StaticFiles):
    """Files of the pages; asked for anew each time, so that an upgrade is seen at once."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        return response


@router.get("/")
async def playground(services: ServicesDep) -> FileResponse:
    """The page where people draw."""
    origin = services.storage.link_origin
    policy = _POLICY.format(bucket=f" {origin}" if origin else "")
    headers = {"Content-Security-Policy": policy, **_PAGE_HEADERS}
    return FileResponse(f"{_WEB}/playground.html", headers=headers)


@router.get("/docs", response_class=HTMLResponse)
async def docs(request: Request) -> HTMLResponse:
    """Swagger UI, from files of this server."""
    root = request.scope.get("root_path", "")
    page = get_swagger_ui_html(
        openapi_url=f"{root}/openapi.json",
        title="Avocat: API reference",
        swagger_js_url=f"{root}{_REFERENCE}/swagger-ui-bundle.js",
        swagger_css_url=f"{root}{_REFERENCE}/swagger-ui.css",
        swagger_favicon_url=f"{root}{_REFERENCE}/favicon.png",
        # Without this, the page asks an outside host to judge the document.
        swagger_ui_parameters={"validatorUrl": None},
    )
    page.headers["Content-Security-Policy"] = _REFERENCE_POLICY
    page.headers["Referrer-Policy"] = "no-referrer"
    return page


@router.get("/openapi.json")
async def document(request: Request, services: ServicesDep) -> dict[str, Any]:
    """The OpenAPI document, with the sizes that the models of this server have."""
    described: dict[str, Any] = request.app.openapi()
    with suppress(RedisError):  # the reference is there without the rest of the service
        cards = (await services.cards.all()).values()
        sizes = {size: None for card in cards for size in card.sizes}
        # Sizes within bounds are no list.
        if sizes and all(card.free_sizes is None for card in cards):
            described = with_sizes(described, sizes)
    root = request.scope.get("root_path", "")
    return {**described, "servers": [{"url": root}]} if root else described


@router.get("/problems/{slug}")
async def problem(slug: str) -> dict[str, object]:
    """What the `type` of a problem leads to."""
    for kind in (*PROBLEMS.values(), INTERNAL):
        if kind.slug == slug:
            return {"type": kind.type, "title": kind.title, "status": kind.status}
    raise NotFound(f"There is no kind of problem {slug[:80]!r}")


def install(app: FastAPI) -> None:
    """Serve the pages' files; those of the reference come with the package fastapi-offline."""
    app.mount("/assets", _Assets(directory=_WEB))
    app.mount(_REFERENCE, _Assets(directory=str(files("fastapi_offline") / "static")))
