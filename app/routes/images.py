"""`GET /v1/images/{name}`: the bytes of a picture, or the way to them in a bucket."""

import time
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Path, Query, Request, Response
from starlette.convertors import StringConvertor, register_url_convertor

from app import errors
from app.auth import Caller
from app.byte_ranges import matches, requested_slice
from app.deps import Services, ServicesDep, get_caller
from app.documentation import header, problems
from app.image_bytes import image_bytes
from app.jobs.ids import is_job_id
from app.jobs.record import StoredImage
from app.storage.base import IMAGE_NAME

__all__ = ["router"]


class _ImageConvertor(StringConvertor):
    """Any name but those of the routes which make images, which know no GET."""

    regex = "(?!(?:generations|edits|variations)$)[^/]+"


register_url_convertor("image", _ImageConvertor())
router = APIRouter(prefix="/v1", tags=["Images"])

_CACHE = "private, max-age=31536000, immutable"
# Seconds for which a link into a bucket is valid, and for which it may be remembered.
_LINK_S, _LINK_CACHED_S = 300, 240
_BINARY = {"schema": {"type": "string", "contentMediaType": "application/octet-stream"}}
_CONTENT = {media_type: _BINARY for media_type in ("image/png", "image/webp", "image/jpeg")}
_HEADERS = {
    "ETag": header("sha256 of the image, quoted"),
    "Cache-Control": header(f"`{_CACHE}`"),
    "Accept-Ranges": header("`bytes`"),
}


@router.get(
    "/images/{name:image}",
    response_class=Response,
    summary="Fetch an image",
    responses={
        200: {"description": "The image", "content": _CONTENT, "headers": _HEADERS},
        206: {
            "description": "The bytes of one `Range`",
            "content": _CONTENT,
            "headers": {**_HEADERS, "Content-Range": header("Which bytes these are")},
        },
        307: {
            "description": "Where the bytes are: a presigned URL of the bucket they are kept in, "
            "if they are, valid for some minutes",
            "headers": {"Location": header("The presigned URL")},
        },
        304: {"description": "`If-None-Match` names this image", "headers": _HEADERS},
        **problems(
            *(
                errors.Unauthorized,
                errors.Forbidden,
                errors.SignatureInvalid,
                errors.SignatureExpired,
            ),
            *(errors.ImageNotFound, errors.RangeNotSatisfiable),
        ),
    },
)
async def get_image(
    request: Request,
    services: ServicesDep,
    name: Annotated[str, Path(description="As in the job's `url`")],
    expires: Annotated[str | None, Query(description="From the signed URL")] = None,
    signature: Annotated[str | None, Query(description="From the signed URL")] = None,
    download: Annotated[
        bool, Query(description="As a file to keep, and always from this server")
    ] = False,
) -> Response:
    """The signed URL of a job works for anyone until it expires, the bare path for the owner.

    `HEAD`, `Range` (one range), `If-Range` and `If-None-Match` work. Where the service keeps
    images in a bucket, `GET` is answered with a redirect to it.
    """
    caller, until = None, time.time() + _LINK_S
    if expires is None and signature is None:
        caller = await get_caller(request)
    else:
        until = min(until, await services.signer.check(name, expires, signature))
    image = await _find(services, name, caller)
    if matches(request.headers.get("if-none-match"), f'"{image.sha256}"'):
        return Response(status_code=304, headers=_headers(image))
    if not download and services.storage.link_origin is not None:
        return await _lead_to(request, services, image, max(1.0, until - time.time()))
    answer = _respond(request, image, await image_bytes(services, image))
    if download:
        answer.headers["Content-Disposition"] = "attachment"  # pages name the file themselves
    return answer


async def _find(services: Services, name: str, caller: Caller | None) -> StoredImage:
    """The image of a job that still exists, and is this caller's to see where one is given."""
    job_id = name.partition("_")[0]
    if IMAGE_NAME.fullmatch(name) and is_job_id(job_id):
        record = await services.reader.get(job_id)
        if record is not None and (caller is None or caller.sees(record.owner)):
            for image in record.images:
                if image.name == name:
                    return image
    raise errors.ImageNotFound(f"There is no image {name[:80]!r} of yours; it may have expired")


def _headers(image: StoredImage) -> dict[str, str]:
    return {"ETag": f'"{image.sha256}"', "Cache-Control": _CACHE, "Accept-Ranges": "bytes"}


async def _lead_to(
    request: Request, services: Services, image: StoredImage, seconds: float
) -> Response:
    """The way into the bucket; all that HEAD wants is known here."""
    if request.scope["state"].get("head"):
        length = {"Content-Length": str(image.bytes)}
        return Response(headers=_headers(image) | length, media_type=image.content_type)
    link = await to_thread.run_sync(services.storage.link, image.name, seconds)
    kept = int(min(_LINK_CACHED_S, seconds * _LINK_CACHED_S / _LINK_S))
    headers = {"Location": link or "", "Cache-Control": f"private, max-age={kept}"}
    return Response(status_code=307, headers=headers)


def _respond(request: Request, image: StoredImage, data: bytes) -> Response:
    headers, given = _headers(image), request.headers
    # A range has a meaning for GET only.
    wanted = None if request.scope["state"].get("head") else given.get("range")
    part = requested_slice(wanted, given.get("if-range"), headers["ETag"], len(data))
    if part is None:
        return Response(data, headers=headers, media_type=image.content_type)
    headers["Content-Range"] = part.content_range
    return Response(data[part.first : part.last + 1], 206, headers, image.content_type)
