"""How both clients speak HTTP."""

import os
from pathlib import Path
from typing import Any

import httpx

from app import __version__
from app.client.calls import HEARTBEAT_S, Listen, Send
from app.client.types import Job, Picture

__all__ = ["DEFAULT_SERVER", "bytes_of", "http_options", "id_of", "new_request"]

DEFAULT_SERVER = "http://127.0.0.1:8000"
# Three heartbeats missed: the connection is lost.
_STREAM_TIMEOUT = httpx.Timeout(10.0, read=3 * HEARTBEAT_S)


def http_options(server: str | None, api_key: str | None, timeout_s: float) -> dict[str, Any]:
    """Arguments of an httpx client; raises ValueError if address or key is none."""
    server = server or os.environ.get("AVOCAT_SERVER") or DEFAULT_SERVER
    api_key = api_key or os.environ.get("AVOCAT_API_KEY")
    try:
        address = httpx.URL(server)
    except httpx.InvalidURL as wrong:
        raise ValueError(f"the server {server!r} is not an address: {wrong}") from wrong
    if address.scheme not in ("http", "https") or not address.host:
        raise ValueError(f"the server {server!r} should be an address such as {DEFAULT_SERVER!r}")
    headers = {"User-Agent": f"avocat-python/{__version__}"}
    if api_key:
        if not (api_key.isascii() and api_key.isprintable()):
            raise ValueError("the API key should be printable ASCII")  # a secret: not quoted
        headers["Authorization"] = f"Bearer {api_key}"
    # Pictures may lie in a bucket; httpx shows no key to another host.
    options = {"timeout": timeout_s, "follow_redirects": True}
    return {"base_url": address, "headers": headers, **options}


def new_request(http: httpx.Client | httpx.AsyncClient, step: Send | Listen) -> httpx.Request:
    """The request that a step asks for."""
    if isinstance(step, Listen):
        return http.build_request(
            "GET", step.path, params=step.params, headers=step.headers, timeout=_STREAM_TIMEOUT
        )
    return http.build_request(
        step.method,
        step.path,
        json=step.json,
        content=step.content,
        params=step.params,
        headers=step.headers,
        timeout=http.timeout if step.timeout_s is None else step.timeout_s,
    )


def id_of(job: Job | str) -> str:
    """A job's id, from the job or the id."""
    return job if isinstance(job, str) else job.id


def bytes_of(picture: Picture | bytes | str | Path) -> bytes:
    """A picture's file, from the file's name where that is given; raises OSError."""
    if isinstance(picture, (str, Path)):
        return Path(picture).read_bytes()
    return picture.data if isinstance(picture, Picture) else picture
