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
Answer = list[Tensor] | Exception
_Asked = tuple[Call, Sequence[Arguments], "SimpleQueue[Answer]"]


class Streams:
    """Makes `count` calls at a time, in threads of its own; a single stream is the caller's thread.

    What is called must bear that.
    """

    def __init__(self, count: int = 1, threads: int = 1) -> None:
        """`threads`: of each call, on CPU; those of a single stream are the caller's to set."""
        self.count: Final = count
        self.threads: Final = threads
        self._own = [_Stream(threads) for _ in range(count)] if count > 1 else []

    def start(
        self, call: Call, parts: Sequence[Arguments], *, here: bool = False
    ) -> Callable[[], list[Tensor]]:
        """Begin to call with each part's arguments, behind what was begun before.

        Args:
            call: what is called.
            parts: the arguments of each call.
            here: whoever waits makes the calls of one stream, which is faster by a change of
                threads; for when nothing else was begun.

        Returns:
            Waits until all calls have ended, and gives what they gave, in the order of the parts;
            raises what one of them raised.
        """
        count, here = self.count, here or not self._own
        answers: list[SimpleQueue[Answer]] = [SimpleQueue() for _ in parts[:count]]
        for i, into in list(enumerate(answers))[int(here) :]:
            self._own[i].asked.put((call, parts[i::count], into))

        def wait() -> list[Tensor]:
            if here and answers:
                answers[0].put(_each(call, parts[::count]))
            found = [into.get() for into in answers]
            for one in found:
                if isinstance(one, Exception):
                    raise one
            return [found[i % count][i // count] for i in range(len(parts))]  # type: ignore[index]

        return wait

    def map(self, call: Call, parts: Sequence[Arguments]) -> list[Tensor]:
        """The same, waited for."""
        return self.start(call, parts, here=True)()

    def close(self) -> None:
        """End the threads; nothing may be called any more."""
        for stream in self._own:
            stream.asked.put(None)


class _Stream:
    """A thread that makes calls. Plain queues: a pool's futures cost twice as long to hand over."""

    def __init__(self, threads: int) -> None:
        self.asked: SimpleQueue[_Asked | None] = SimpleQueue()
        threading.Thread(target=self._run, args=(threads,), name="stream", daemon=True).start()

    def _run(self, threads: int) -> None:
        torch.set_num_threads(threads)
        while (asked := self.asked.get()) is not None:
            call, parts, into = asked
            into.put(_each(call, parts))


@torch.inference_mode()
def _each(call: Call, parts: Sequence[Arguments]) -> Answer:
    try:
        return [call(*part) for part in parts]
    except Exception as fault:
        return fault
