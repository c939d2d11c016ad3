"""The folder of LoRAs while a worker runs: looked at beside its work, for hashing takes time."""

import threading
from collections.abc import Sequence
from pathlib import Path

import structlog

from app.jobs.models import LoraCard
from app.jobs.record import LoraUse
from models.model import Adapters, LoraFolder, Model

__all__ = ["Loras"]

_log = structlog.get_logger()
_LOOK_S = 2.0
_FIRST_LOOK_S = 5.0  # what takes longer to look through is announced later


class Loras:
    """What the folder holds for one model. Without a folder, or for a bundle, there is nothing."""

    def __init__(self, model: Model, folder: Path | None) -> None:
        """Nothing is looked at before `start`; afterwards nothing else may change the model."""
        self.cards: tuple[LoraCard, ...] = ()  # replaced whole
        self._folder: LoraFolder | None = None
        self._stop, self._looked = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        if folder is not None:
            self._folder = model.lora_folder(folder)

    def start(self) -> None:
        """Begin to look; returns after the first look, or while a long one goes on."""
        if self._folder is None:
            return
        self._thread = threading.Thread(target=self._run, name="loras", daemon=True)
        self._thread.start()
        self._looked.wait(_FIRST_LOOK_S)

    def close(self) -> None:
        """Look no more."""
        self._stop.set()

    def adapters(self, wanted: Sequence[LoraUse]) -> Adapters | None:
        """What the rows of a job are drawn with.

        Raises:
            ValueError: the model has no such LoRA, or no more.
        """
        if not wanted:
            return None
        if self._folder is None:
            raise ValueError("the model takes no LoRAs on this worker")
        return self._folder.adapters([(one.name, one.weight, one.sha256) for one in wanted])

    def _run(self) -> None:
        while True:
            try:
                self._look()
            except OSError as fault:
                _log.warning("the folder of LoRAs cannot be read", reason=str(fault))
            self._looked.set()
            if self._stop.wait(_LOOK_S):
                return

    def _look(self) -> None:
        if self._folder is None:
            return
        found = self._folder.scan()
        cards = tuple(LoraCard(name=o.name, sha256=o.sha256, fault=o.fault) for o in found)
        if cards != self.cards:
            unfit = [card.fault for card in cards if card.fault]
            _log.info(
                "LoRAs found", names=[one.name for one in cards if not one.fault], unfit=unfit
            )
            self.cards = cards
