"""`POST /v1/images/generations`: OpenAI's Images API, in front of the same queue as every job.

An Idempotency-Key has no meaning here: a job that is canceled as its caller hangs up is no answer
to the caller's next try.
"""

from fastapi import APIRouter, Request, Response

from app import errors
from app.deps import ServicesDep, SubmitterDep
from app.documentation import header, json_body, openai_problems
from app.event_stream import STREAM_SCHEMA
from app.generation import read_generation
from app.json_body import read_json
from app.openai_answers import answer, submitted
from app.request_headers import require_json
from app.schemas.openai import ImageGeneration, Images

__all__ = ["router"]

router = APIRouter(prefix="/v1", tags=["OpenAI"])


@router.post(
    "/images/generations",
    summary="Generate images as OpenAI's API does",
    openapi_extra=json_body(ImageGeneration),
    response_model=Images,
    responses={
        200: {
            "description": "The images, or with `stream` events of them",
            "headers": {"X-Job-Id": header("The job behind the images")},
            "content": {"text/event-stream": {"schema": STREAM_SCHEMA}},
        },
        **openai_problems(
            *(errors.MalformedJson, errors.Unauthorized, errors.Forbidden, errors.ModelNotFound),
            *(errors.JobCanceled, errors.BodyTooLarge, errors.UnsupportedMediaType),
            *(
                errors.InvalidRequest,
                errors.PolicyViolation,
                errors.QuotaExceeded,
                errors.QueueFull,
                errors.StorageFull,
                errors.JobFailed,
            ),
            errors.JobNotFinished,
        ),
    },
)
async def generate_images(
    request: Request, services: ServicesDep, caller: SubmitterDep
) -> Response:
    """Waits for the images. Who hangs up cancels their job, which any other route knows too."""
    require_json(request.headers)
    asked = read_generation(read_json(await request.body()))
    record = await submitted(request, services, caller, asked)
    return await answer(request, services, asked, record)
