"""Calls of the network side by side, each on its share of the processor.

On CPU two calls of one row, on half of the cores each, take less time than one call of two rows on
all of them: no core waits for the other within a call. And a row is a batch of its own, so none is
padding.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

import torch
from torch import Tensor

__all__ = ["Streams"]

T = TypeVar("T")


class Streams:
    """Makes `count` calls at a time; the caller's own thread makes one of them.

    What is called must bear that.
    """

    def __init__(self, count: int = 1, threads: int = 1) -> None:
        """`threads`: of each call, on CPU; the caller's own are the caller's to set."""
        self.count: Final = count
        self.threads: Final = threads
        self._others = ThreadPoolExecutor(
            max(1, count - 1), "stream", initializer=torch.set_num_threads, initargs=(threads,)
        )

    def map(self, call: Callable[[T], Tensor], parts: Sequence[T]) -> list[Tensor]:
        """What `call` gives of each part, in their order.

        Raises:
            Exception: one that `call` raised, once all calls have ended.
        """
        count = min(self.count, len(parts))
        asked = [self._others.submit(_each, call, parts[i::count]) for i in range(1, count)]
        try:
            own = _each(call, parts[:: max(1, count)])
        finally:
            for one in asked:
                one.exception()
        lists = [own, *(one.result() for one in asked)]
        return [lists[i % count][i // count] for i in range(len(parts))]


@torch.inference_mode()
def _each(call: Callable[[T], Tensor], parts: Sequence[T]) -> list[Tensor]:
    return [call(part) for part in parts]
