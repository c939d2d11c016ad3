"""Programs that are stopped while they still import, which takes seconds."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["ended_in_silence"]


@contextmanager
def ended_in_silence() -> Iterator[None]:
    """Within, Ctrl-C ends the process as a signal does, without a traceback through libraries."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # as under nohup
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
