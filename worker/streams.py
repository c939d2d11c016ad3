"""Calls of the network side by side, each on its share of the processor.

On CPU two calls of one row, on half of the cores each, take less time than one call of two rows on
all of them: no core waits for the other within a call. And a row is a batch of its own, so none is
padding.
"""

import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any, Final

import torch
from torch import Tensor

__all__ = ["Streams"]

Call = Callable[..., Tensor]
Arguments = tuple[Any, ...]


class Streams:
    """Makes `count` calls at a time; the caller's own thread makes one of them.

    What is called must bear that.
    """

    def __init__(self, count: int = 1, threads: int = 1) -> None:
        """`threads`: of each call, on CPU; the caller's own are the caller's to set."""
        self.count: Final = count
        self.threads: Final = threads
        self._others = [_Stream(threads) for _ in range(1, count)]

    def map(self, call: Call, parts: Sequence[Arguments]) -> list[Tensor]:
        """What `call` gives for each part's arguments, in their order.

        Raises:
            Exception: one that `call` raised, once all calls have ended.
        """
        count = self.count
        asked = list(zip(self._others, range(1, min(count, len(parts))), strict=False))
        for stream, i in asked:
            stream.asked.put((call, parts[i::count]))
        answers = [_each(call, parts[::count]), *(stream.answers.get() for stream, _ in asked)]
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return [answers[i % count][i // count] for i in range(len(parts))]  # type: ignore[index]

    def close(self) -> None:
        """End the threads; nothing may be called any more."""
        for stream in self._others:
            stream.asked.put(None)


class _Stream:
    """A thread that makes calls. Plain queues: a pool's futures cost twice as long to hand over."""

    def __init__(self, threads: int) -> None:
        self.asked: SimpleQueue[tuple[Call, Sequence[Arguments]] | None] = SimpleQueue()
        self.answers: SimpleQueue[list[Tensor] | Exception] = SimpleQueue()
        threading.Thread(target=self._run, args=(threads,), name="stream", daemon=True).start()

    def _run(self, threads: int) -> None:
        torch.set_num_threads(threads)
        while (asked := self.asked.get()) is not None:
            self.answers.put(_each(*asked))


@torch.inference_mode()
def _each(call: Call, parts: Sequence[Arguments]) -> list[Tensor] | Exception:
    try:
        return [call(*part) for part in parts]
    except Exception as fault:
        return fault
