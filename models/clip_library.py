"""Imports open_clip without the seconds that its imports take for what a CLIP does not use.

open_clip imports the whole of torchvision for a few transforms (and with its detection operators
torch's compiler), timm and transformers for towers that most CLIPs have not, and a client of a
model hub for weights that are not here yet.
"""

import importlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any, Final

from models.torchvision_ops import declare_missing_operators

__all__ = ["open_clip"]

_LATER: Final = frozenset(f"torchvision.{name}" for name in ("datasets", "io", "models", "ops"))
_OPTIONAL: Final = ("huggingface_hub", "timm", "transformers")  # open_clip does without them


def open_clip(*, whole: bool = True) -> Any:
    """The package open_clip; not `whole`: it may not know of the optional packages that are there.

    Whoever imports torchvision later finds all of it: its parts load when they are first used.
    """
    loaded = sys.modules.get("open_clip")
    if loaded is not None and (not whole or _is_whole(loaded)):
        return loaded
    for name in [name for name in sys.modules if name.partition(".")[0] == "open_clip"]:
        del sys.modules[name]  # models made of the former keep their classes
    declare_missing_operators()
    with _parts_of_torchvision_later(), _absent(() if whole else _OPTIONAL):
        return importlib.import_module("open_clip")


def _is_whole(loaded: Any) -> bool:
    known = {
        "huggingface_hub": loaded.pretrained._has_hf_hub,
        "timm": loaded.timm_model.timm,
        "transformers": loaded.hf_model.transformers,
    }
    return all(known[name] or not importlib.util.find_spec(name) for name in _OPTIONAL)


@contextmanager
def _absent(names: Sequence[str]) -> Iterator[None]:
    """Within, importing these fails as if they were not installed, unless they are imported."""
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: not to be found
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


@contextmanager
def _parts_of_torchvision_later() -> Iterator[None]:
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _Finder(MetaPathFinder):
    """Finds the parts of torchvision that wait; all else is found as ever."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path) if fullname in _LATER else None
        if spec is not None and spec.loader is not None:
            spec.loader = _Later(spec.loader)
        return spec


class _Later(Loader):
    """Runs a package when something is first looked up in it.

    Unlike importlib's LazyLoader not already for its `__path__`, which its submodules ask for.
    """

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Waiting(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["_loader"] = self._loader


class _Waiting(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        self.__class__ = ModuleType  # type: ignore[assignment]  # it does not wait any more
        self.__dict__.pop("_loader").exec_module(self)
        return getattr(self, name)
