"""The models that a worker could load: the one it was started with, and those of a folder.

A bundle with a preset is two models.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from models.bundle import PRESETS, BundleConfig
from models.description import Description, describe_model
from models.errors import ModelError

__all__ = ["Catalogue", "Entry"]

CONFIG_FILE = "bundle.json"


@dataclass(frozen=True)
class Entry:
    """A model on disk. `fault` says why it cannot be loaded; `stamp` changes when it does."""

    name: str
    path: Path
    preset: str
    stamp: int
    description: Description | None
    fault: str = ""

    @property
    def weights_bytes(self) -> int:
        """Memory that it takes once it is loaded, as far as that is known."""
        return 0 if self.description is None else self.description.weights_bytes


class Catalogue:
    """Looks into the folder again and again: models come and go while the worker runs."""

    def __init__(self, own: Path, preset: str, folder: Path, itemsize: int = 4) -> None:
        """`own`: what the worker was started with, whose name no other model takes.

        `itemsize`: bytes that a weight of an imported model takes once it is loaded.
        """
        self.entries: dict[str, Entry] = {}
        self._own, self._preset, self._folder, self._itemsize = own, preset, folder, itemsize

    def look(self) -> bool:
        """Read what is new or changed; whether anything is."""
        known = {(entry.path, entry.preset): entry for entry in self.entries.values()}
        found: dict[str, Entry] = {}

        def find(path: Path, preset: str, stamp: int) -> Entry:
            entry = known.get((path, preset))
            if entry is None or entry.stamp != stamp or entry.fault:  # which may be mended
                entry = _read(path, preset, stamp, self._itemsize)
            found.setdefault(entry.name, entry)
            return entry

        for path, preset, stamp in self._places():
            for other in _others(find(path, preset, stamp)):
                find(path, other, stamp)
        changed = found != self.entries
        self.entries = found
        return changed

    def _places(self) -> Iterator[tuple[Path, str, int]]:
        own = self._own.resolve()
        paths = [(own, self._preset)]
        paths += [(file.parent, "") for file in sorted(self._folder.glob(f"*/{CONFIG_FILE}"))]
        for path, preset in paths:
            if path != own or preset == self._preset:
                try:
                    yield path, preset, (path / CONFIG_FILE).stat().st_mtime_ns
                except OSError:  # it was removed just now
                    continue


def _others(entry: Entry) -> list[str]:
    """What else the bundle can be loaded as."""
    config = entry.description.config if entry.description is not None else None
    if not isinstance(config, BundleConfig) or config.turbo is None:
        return []
    return [preset for preset in PRESETS if preset != entry.preset]


def _read(path: Path, preset: str, stamp: int, itemsize: int) -> Entry:
    try:
        found = describe_model(path, preset, itemsize)
    except (ModelError, OSError, ValueError) as fault:
        return Entry(path.name, path, preset, stamp, None, str(fault))
    return Entry(found.config.name, path, preset, stamp, found)
