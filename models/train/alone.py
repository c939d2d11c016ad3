"""One run at a time in a folder: two would overwrite each other's files, and `bundle.json`."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from models.errors import ModelError


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Hold `out`, which is made if missing, for one run of any part, until it ends or is killed.

    Raises:
        ModelError: another process trains there, or nothing can be written there.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        handle = (out / ".training.lock").open("a")
    except OSError as fault:
        raise ModelError(f"--out {str(out)!r} cannot be written: {fault.strerror}") from None
    with handle:
        try:
            # Not flock, which the loaders of a killed run would hold for seconds after it.
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise ModelError(
                f"another `avocat train` is at work in {str(out)!r}: "
                f"wait until it has ended, or give another --out"
            ) from None
        except OSError:  # a file system without locks
            pass
        yield
