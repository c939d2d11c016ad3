"""From finished rows to images in storage; runs beside the step loop, in other threads."""

import hashlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from app.jobs.models import ModelCard
from app.jobs.recipe import Recipe
from app.jobs.record import JobRecord, StoredImage
from app.storage.base import ImageStorage, StorageError
from models.layout import lay
from models.model import Model, Size
from models.pictures import to_picture
from worker.encoding import CONTENT_TYPES, SUFFIXES, encode
from worker.prompts import Order, Prompts

__all__ = ["Results", "discard", "image_names"]


@dataclass(frozen=True, eq=False)
class _Developed:
    picture: Image.Image
    seed: int
    clip_score: float | None
    card: ModelCard


class Results:
    """Develops, scores, encodes and stores what one model has drawn."""

    def __init__(self, model: Model, prompts: Prompts, storage: ImageStorage) -> None:
        self._model = model
        self._faster: dict[str, Model] = {}  # the same in other runtimes, by fingerprint
        self._prompts = prompts
        self._storage = storage

    def switch(self, model: Model, card: ModelCard) -> None:
        """What is drawn with that card is developed by this one: its bits go by the fingerprint."""
        self._faster[card.fingerprint] = model

    def store(
        self,
        record: JobRecord,
        execution: str,
        order: Order,
        rows: Mapping[int, Tensor],
        cards: Mapping[int, ModelCard],
    ) -> list[StoredImage]:
        """Store a job's pictures: all `n`, or of more candidates the best by CLIP score first.

        `rows` are the engine's pictures by row index, `cards` what each was drawn with. When this
        returns, all images survive a crash; when it raises, none is left.

        Raises:
            StorageError: an image could not be stored.
        """
        request = record.request
        developed: list[_Developed] = []
        for i, seed in enumerate(order.seeds):
            own = order.rows_of(i)
            layers, drawn = [rows[at] for at in own], [cards[at] for at in own]
            developed.append(self._develop(record, order.size, seed, layers, drawn))
        if len(developed) > request.n:
            developed.sort(key=lambda one: -(one.clip_score or 0.0))  # stable: ties keep seed order
        images: list[StoredImage] = []
        try:
            for index, one in enumerate(developed[: request.n]):
                images.append(self._write(record, execution, index, one))
        except StorageError:
            discard(self._storage, image_names(record, execution))
            raise
        return images

    def _develop(
        self, record: JobRecord, size: Size, seed: int, rows: list[Tensor], cards: list[ModelCard]
    ) -> _Developed:
        """One picture from the rows of its layers."""
        layers = [
            self._faster.get(card.fingerprint, self._model).develop(row, size)
            for row, card in zip(rows, cards, strict=True)
        ]
        picture = to_picture(lay(record.request.scene, layers))
        score = self._prompts.score(picture, record.request.prompt)
        card = cards[0]
        if len({one.fingerprint for one in cards}) > 1:
            card = card.model_copy(update={"fingerprint": ""})  # no runtime gives it once more
        return _Developed(picture, seed, score, card)

    def _write(self, record: JobRecord, execution: str, index: int, one: _Developed) -> StoredImage:
        recipe = Recipe.of(record.request, one.seed, one.card)
        data = encode(one.picture, recipe)
        name = image_names(record, execution)[index]
        self._storage.write(name, data)
        return StoredImage(
            index=index,
            name=name,
            seed=one.seed,
            width=one.picture.width,
            height=one.picture.height,
            content_type=CONTENT_TYPES[recipe.output_format],
            bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            clip_score=one.clip_score,
        )


def discard(storage: ImageStorage, names: Iterable[str]) -> None:
    """Delete images that nobody will ever be told of; what cannot be deleted stays."""
    with suppress(StorageError):  # not one by one: a service that is away costs seconds each
        for name in names:
            storage.delete(name)


def image_names(record: JobRecord, execution: str) -> list[str]:
    """The names that this execution of the job stores its images under."""
    suffix = SUFFIXES[record.request.output_format]
    return [f"{record.id}_{execution[:8]}_{i}.{suffix}" for i in range(record.request.n)]
