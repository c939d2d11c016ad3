"""Previews: what running jobs would be if they ended now, for those who watch them."""

import base64
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from threading import BoundedSemaphore

import structlog
from redis import Redis
from torch import Tensor

from app import keys
from app.jobs.record import JobRecord
from models.layout import lay
from models.model import Model
from models.pictures import to_picture
from worker.encoding import CONTENT_TYPES, on_background

__all__ = ["Preview", "Previews"]

_log = structlog.get_logger()
_MOST_WAITING = 64  # beyond that they are dropped: a late preview is worth nothing
_QUALITY = 85  # of WebP and JPEG


@dataclass(frozen=True, eq=False)
class Preview:
    """A picture on its way: what its layers, float32 `[C, H, W]`, would be if they ended now."""

    index: int  # which picture of the job
    step: int  # steps done
    layers: Sequence[Tensor]  # one where there is no scene


class Previews:
    """Encodes and publishes, beside the step loop and beside the storing of finished pictures."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._room = BoundedSemaphore(_MOST_WAITING)
        self._pool = ThreadPoolExecutor(1, "previews")  # one: they arrive in their order

    def show(self, model: Model, record: JobRecord, preview: Preview) -> None:
        """Publish a preview of one of the job's pictures soon."""
        # More candidates than pictures: which are kept is not known yet, so the first ones.
        if preview.index < record.request.n and self._room.acquire(blocking=False):
            self._pool.submit(self._publish, model, record, preview)

    def close(self) -> None:
        """Wait for the one at work; drop the rest."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _publish(self, model: Model, record: JobRecord, preview: Preview) -> None:
        try:
            event = {
                "kind": "preview",
                "job_id": record.id,
                "attempt": record.attempts,
                "step": preview.step,
                "index": preview.index,
                "data_url": _data_url(model, record, preview),
            }
            self._redis.publish(keys.EVENTS, json.dumps(event))
        except Exception as fault:  # a preview is never a reason to disturb the job
            _log.warning("preview not shown", reason=repr(fault), **record.log_fields)
        finally:
            self._room.release()


def _data_url(model: Model, record: JobRecord, preview: Preview) -> str:
    """The preview, small, in the format and on the background of the final picture."""
    output_format, background = record.request.output_format, record.request.background
    layers = [model.preview(layer) for layer in preview.layers]
    picture = to_picture(lay(record.request.scene, layers))
    shown = on_background(picture, background, alpha=output_format != "jpeg")
    out = BytesIO()
    shown.save(out, output_format.upper(), quality=_QUALITY)
    data = base64.b64encode(out.getvalue()).decode()
    return f"data:{CONTENT_TYPES[output_format]};base64,{data}"
