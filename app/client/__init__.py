"""A Python client of an Avocat service: `Avocat`, and `AsyncAvocat` with the same methods.

from app.client import Avocat

with Avocat("http://127.0.0.1:8000") as avocat:
    for picture in avocat.generate("a red apple", n=2, seed=7):
        picture.save(f"apple-{picture.seed}.png")
"""

from app.client.asynchronous import AsyncAvocat
from app.client.errors import (
    AvocatError,
    BadRequest,
    Forbidden,
    JobCanceled,
    JobFailed,
    JobTimeout,
    NotFound,
    ProblemError,
    ServerError,
    TooManyRequests,
    Unauthorized,
    Unreachable,
)
from app.client.events import Ended, Event, Preview, Progressed, StatusChanged
from app.client.retries import Retries
from app.client.synchronous import Avocat
from app.client.types import (
    GivenPicture,
    Image,
    Job,
    JobFields,
    Lora,
    Model,
    ModelPlaces,
    Picture,
    Problem,
    Verification,
    Worker,
)

__all__ = [
    "AsyncAvocat",
    "Avocat",
    "AvocatError",
    "BadRequest",
    "Ended",
    "Event",
    "Forbidden",
    "GivenPicture",
    "Image",
    "Job",
    "JobCanceled",
    "JobFailed",
    "JobFields",
    "JobTimeout",
    "Lora",
    "Model",
    "ModelPlaces",
    "NotFound",
    "Picture",
    "Preview",
    "Problem",
    "ProblemError",
    "Progressed",
    "Retries",
    "ServerError",
    "StatusChanged",
    "TooManyRequests",
    "Unauthorized",
    "Unreachable",
    "Verification",
    "Worker",
]
