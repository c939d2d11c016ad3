"""One worker after the other measures, and the later ones read what the first has found."""

import fcntl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

__all__ = ["undisturbed"]


@contextmanager
def undisturbed(lock: Path) -> Iterator[None]:
    """Hold this file, which no two processes do at a time; where it cannot be written, nothing."""
    with ExitStack() as stack:
        with suppress(OSError):  # a read-only folder
            lock.parent.mkdir(parents=True, exist_ok=True)
            held = stack.enter_context(lock.open("w"))
            fcntl.flock(held, fcntl.LOCK_EX)
        yield
