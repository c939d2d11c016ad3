"""The bytes of stored images, never others."""

import hashlib

import structlog
from anyio import to_thread

from app.deps import Services
from app.errors import ImageNotFound, Unavailable
from app.jobs.record import StoredImage
from app.storage.base import StorageError

__all__ = ["image_bytes"]

_log = structlog.get_logger()


async def image_bytes(services: Services, image: StoredImage) -> bytes:
    """Read an image of a job.

    Raises:
        ImageNotFound: it is missing or damaged.
        Unavailable: the storage is away, or may not be read.
    """
    try:
        data = await to_thread.run_sync(services.storage.read, image.name)
    except FileNotFoundError:
        data = b""
    except (StorageError, OSError) as error:
        _log.error("image cannot be read", image=image.name, reason=str(error))
        raise Unavailable(
            "The storage of images does not answer; try again soon", headers={"Retry-After": "5"}
        ) from None
    if hashlib.sha256(data).hexdigest() != image.sha256:  # never send what is not the picture
        _log.error("image is missing or damaged", image=image.name, bytes=len(data))
        raise ImageNotFound(f"The image {image.name!r} is lost; submit the job again")
    return data
