"""How the commands start other programs of Avocat: the same interpreter, the same packages."""

import os
import sys
from pathlib import Path

import app

__all__ = ["environment", "program"]


def program(module: str, *arguments: str) -> list[str]:
    """The command line of `python -m module arguments…`."""
    return [sys.executable, "-m", module, *arguments]


def environment() -> dict[str, str]:
    """This process's environment, in which `app` is this `app` whatever lies in the current folder.

    `python -m` would look into the current folder first, and many a folder has an `app`.
    """
    packages = str(Path(app.__file__).resolve().parent.parent)
    others = os.environ.get("PYTHONPATH")
    path = packages if not others else os.pathsep.join([packages, others])
    return os.environ | {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
