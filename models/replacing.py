"""Files that are written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from models.errors import ModelError


@contextmanager
def replacing(file: Path) -> Iterator[BinaryIO]:
    """A handle to write to, whose file takes the place of `file` at the end.

    A kill or a fault leaves the former one, and a fault nothing beside it.

    Raises:
        ModelError: it cannot be written, for want of room or rights.
    """
    partial = file.with_name(f"{file.name}.partial")
    try:
        with partial.open("wb") as handle:
            yield handle
        os.replace(partial, file)
    except (OSError, RuntimeError) as fault:  # torch.save hides the one in the other
        first = fault.__context__ if isinstance(fault.__context__, OSError) else fault
        reason = getattr(first, "strerror", None) or str(first).splitlines()[0]
        raise ModelError(f"{str(file)!r} cannot be written: {reason}") from None
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
