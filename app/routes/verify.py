"""`POST /v1/verify`: is this picture what its recipe gives?"""

import tempfile
from typing import IO

from fastapi import APIRouter, Request, Response
from starlette.requests import ClientDisconnect

from app import errors
from app.deps import ServicesDep, SubmitterDep
from app.documentation import header, problems
from app.hang_up import HUNG_UP, ClientGone
from app.pictures import UnreadablePicture
from app.request_headers import require_picture
from app.schemas.problems import FieldProblem
from app.schemas.verification import Verification
from app.verification import PictureFile, verify

__all__ = ["PATH", "router"]

PATH = "/v1/verify"
MAX_BYTES = 8 * 2**20
_IN_MEMORY_BYTES = 2**16  # more of a body waits on disk: many may be sent at once
# A client that sends too much gets its answer only once it has been listened to, up to here.
_DRAINED_BYTES = MAX_BYTES + 2**20

router = APIRouter(tags=["Images"])

_FILE = {"schema": {"type": "string", "contentMediaType": "application/octet-stream"}}


@router.post(
    PATH,
    summary="Verify a picture",
    response_model=Verification,
    openapi_extra={
        "requestBody": {"required": True, "content": {"image/png": _FILE, "image/webp": _FILE}}
    },
    responses={
        200: {"headers": {"X-Job-Id": header("The job that made it again, if one did")}},
        **problems(
            *(
                errors.Unauthorized,
                errors.Forbidden,
                errors.BodyTooLarge,
                errors.UnsupportedMediaType,
            ),
            *(
                errors.InvalidRequest,
                errors.JobCanceled,
                errors.PolicyViolation,
                errors.QuotaExceeded,
                errors.QueueFull,
                errors.StorageFull,
            ),
            *(errors.JobFailed, errors.JobNotFinished),
        ),
    },
)
async def verify_picture(
    request: Request, services: ServicesDep, caller: SubmitterDep
) -> Verification | Response:
    """Makes a PNG or WebP again from the recipe inside, as a job, and compares the pixels.

    Waits for it, and who hangs up cancels it. `unverifiable`: there is no recipe, or it is of
    another model, runtime or kind of device than this service has.
    """
    media_type = require_picture(request.headers)
    with tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES) as file:
        try:
            await _receive(request, file)
            return await verify(request, services, caller, PictureFile(file, media_type))
        except (ClientDisconnect, ClientGone):
            return Response(status_code=HUNG_UP)
        except UnreadablePicture as fault:
            problem = FieldProblem(pointer="", message=f"Not a whole {media_type} file: {fault}")
            detail = "The picture cannot be read; send the file as it was fetched"
            raise errors.InvalidRequest(detail, errors=[problem]) from None


async def _receive(request: Request, file: IO[bytes]) -> None:
    """Read the body.

    Raises:
        BodyTooLarge: it has more than 8 MiB.
    """
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= MAX_BYTES:
            file.write(chunk)
        elif size > _DRAINED_BYTES:
            break
    if size > MAX_BYTES:
        detail = f"The picture is over {MAX_BYTES} bytes, which is the most"
        raise errors.BodyTooLarge(detail, headers={"Connection": "close"})
