"""What jobs start from: out of storage, into the space of x_t, beside the step loop."""

import hashlib
from dataclasses import replace

from PIL import Image

from app.jobs.inputs import InputError, open_picture
from app.jobs.record import JobRecord, StoredInput
from app.storage.base import ImageStorage, StorageError
from models.model import Model
from worker.prompts import Order, Prompts

__all__ = ["Inputs"]


class Inputs:
    """Reads and takes in; for one thread, which is not the engine's."""

    def __init__(self, model: Model, prompts: Prompts, storage: ImageStorage) -> None:
        self._model = model
        self._prompts = prompts
        self._storage = storage

    def start(self, record: JobRecord, order: Order) -> Order:
        """The order of a job with `inputs`, its rows starting from them.

        Raises:
            StorageError: a file cannot be read at the moment.
            ValueError: a file is gone or is another; the message is for the job's owner.
        """
        files = {one.role: self._picture(one) for one in record.inputs}
        if "init_image" not in files:
            raise InputError("the job starts from a picture, and its record names none")
        picture, mask = files["init_image"], files.get("mask")
        origin = self._model.take_in(picture, mask and mask.convert("L"), order.size)
        skipped = record.request.steps - record.request.taken
        rows = [replace(row, origin=origin, skipped=skipped) for row in order.rows]
        if record.request.is_variation:
            context = self._prompts.seen(picture)
            rows = [replace(row, context=context or row.context) for row in rows]
        return replace(order, rows=tuple(rows))

    def _picture(self, one: StoredInput) -> Image.Image:
        try:
            data = self._storage.read(one.name)
        except FileNotFoundError:
            raise InputError(f"the {one.role} is gone; submit the job again") from None
        except OSError as fault:
            raise StorageError(f"{one.name!r} could not be read: {fault.strerror}") from fault
        if hashlib.sha256(data).hexdigest() != one.sha256:
            raise InputError(f"the {one.role} is damaged; submit the job again")
        return open_picture(data)
