"""The folder of LoRAs that the operator fills: what in it suits a model, loaded when it is asked.

It may change at any time; what is asked for is asked by its hash, so nothing is drawn with a file
that was put in another's place.
"""

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISREG

import torch
from torch import nn

from models.model import KnownLora
from models.stable_diffusion.lora import Lora, LoraAdapters, adaptable
from models.stable_diffusion.lora_file import LoraError, check_lora, read_lora

__all__ = ["LoraFolder"]

_CACHED_BYTES = 2**30  # on the device; the last one is kept, however large
_Stamp = tuple[int, int, int]  # of a file: inode, size, time of change
_UNREAD: _Stamp = (-1, -1, -1)  # so it is tried each time: rights change without a trace in these


@dataclass(eq=False)
class LoraFolder:
    """The `.safetensors` files of a folder by their names without it, for one model."""

    path: Path
    networks: dict[str, nn.Module]
    device: torch.device
    _seen: dict[str, tuple[_Stamp, KnownLora]] = field(default_factory=dict)
    _loaded: OrderedDict[str, Lora] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        """Make the layers take LoRAs."""
        for part, network in self.networks.items():
            adaptable(part, network)

    def scan(self) -> tuple[KnownLora, ...]:
        """What is there now; files are read only where they are new or have changed.

        A folder that is missing is empty.
        """
        known: dict[str, tuple[_Stamp, KnownLora]] = {}
        for file in sorted(self.path.glob("*.safetensors")):
            with suppress(FileNotFoundError):  # it has just gone
                stat = file.stat()
                if S_ISREG(stat.st_mode):  # opening a pipe waits for ever
                    stamp = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
                    known[file.stem] = self._known(file, stamp)
        self._seen = known
        return tuple(one for _, one in known.values())

    def adapters(self, wanted: Sequence[tuple[str, float, str]]) -> LoraAdapters | None:
        """The LoRAs of a row by (name, weight, sha256); None for none.

        Raises:
            LoraError: a file is gone, has changed, or does not fit.
        """
        if not wanted:
            return None
        loras = tuple((self._take(name, sha256), weight) for name, weight, sha256 in wanted)
        return LoraAdapters(tuple((sha256, weight) for _, weight, sha256 in wanted), loras)

    def _known(self, file: Path, stamp: _Stamp) -> tuple[_Stamp, KnownLora]:
        before = self._seen.get(file.stem)
        if before is not None and before[0] == stamp:
            return before
        name = os.fsencode(file.stem).decode("utf-8", "replace")
        try:
            return stamp, self._look(file, name)
        except FileNotFoundError:
            raise
        except OSError as fault:
            return _UNREAD, KnownLora(name, "", _unreadable(name, fault))

    def _look(self, file: Path, name: str) -> KnownLora:
        sha256 = _sha256(file)
        if name != file.stem:  # it could be told to nobody
            return KnownLora(name, sha256, f"the name of LoRA {name!r} is not UTF-8; rename it")
        try:
            check_lora(file, self.networks)
        except LoraError as fault:
            return KnownLora(file.stem, sha256, str(fault))
        return KnownLora(file.stem, sha256)

    def _take(self, name: str, sha256: str) -> Lora:
        with self._lock:
            if sha256 not in self._loaded:
                self._loaded[sha256] = self._load(name, sha256)
                self._make_room()
            self._loaded.move_to_end(sha256)
            return self._loaded[sha256]

    def _load(self, name: str, sha256: str) -> Lora:
        file = self.path / f"{name}.safetensors"
        if file.parent != self.path or not file.is_file():
            raise LoraError(f"LoRA {name!r} is gone: there is no {file.name} any more")
        try:
            found = _sha256(file)
        except OSError as fault:
            raise LoraError(_unreadable(name, fault)) from None
        if found != sha256:
            raise LoraError(f"LoRA {name!r} has changed since it was asked for; ask again")
        return read_lora(file, self.networks, self.device)

    def _make_room(self) -> None:
        """Rows in flight keep theirs, whatever is forgotten here."""
        total = sum(lora.size_bytes for lora in self._loaded.values())
        while total > _CACHED_BYTES and len(self._loaded) > 1:
            total -= self._loaded.popitem(last=False)[1].size_bytes


def _unreadable(name: str, fault: OSError) -> str:
    return f"LoRA {name!r} cannot be read: {fault.strerror}"


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
