"""Pages for people: the front page, and the API reference without any outside host."""

from importlib.resources import files

from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles

from app.errors import INTERNAL, PROBLEMS, NotFound

__all__ = ["install", "router"]

router = APIRouter(include_in_schema=False)

_ASSETS = "/docs/assets"
_FRONT_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Avocat</title>
<style>body{font:1.1rem/1.6 system-ui,sans-serif;max-width:38rem;margin:4rem auto;padding:0 1rem}
:root{color-scheme:light dark}</style>
<h1>Avocat</h1>
<p>A text-to-image service: a prompt goes in as a job, pictures come out.</p>
<p><a href="docs">API reference</a> · <a href="openapi.json">OpenAPI document</a> ·
<a href="readyz">Is it ready?</a></p>
</html>
"""


@router.get("/", response_class=HTMLResponse)
async def front_page() -> str:
    """What this is."""
    return _FRONT_PAGE


@router.get("/docs", response_class=HTMLResponse)
async def docs(request: Request) -> HTMLResponse:
    """Swagger UI, from files of this server."""
    root = request.scope.get("root_path", "")
    return get_swagger_ui_html(
        openapi_url=f"{root}/openapi.json",
        title="Avocat: API reference",
        swagger_js_url=f"{root}{_ASSETS}/swagger-ui-bundle.js",
        swagger_css_url=f"{root}{_ASSETS}/swagger-ui.css",
        swagger_favicon_url=f"{root}{_ASSETS}/favicon.png",
        # Without this, the page asks an outside host to judge the document.
        swagger_ui_parameters={"validatorUrl": None},
    )


@router.get("/problems/{slug}")
async def problem(slug: str) -> dict[str, object]:
    """What the `type` of a problem leads to."""
    for kind in (*PROBLEMS.values(), INTERNAL):
        if kind.slug == slug:
            return {"type": kind.type, "title": kind.title, "status": kind.status}
    raise NotFound(f"There is no kind of problem {slug[:80]!r}")


def install(app: FastAPI) -> None:
    """Serve the files of the API reference; they come with the package fastapi-offline."""
    app.mount(_ASSETS, StaticFiles(directory=str(files("fastapi_offline") / "static")))
