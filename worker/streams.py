"""Calls of the network side by side, each on its share of the processor.

On CPU two calls of one row, on half of the cores each, take less time than one call of two rows on
all of them: no core waits for the other within a call. And a row is a batch of its own, so none is
padding.
"""

import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any, Final, TypeVar

import torch

__all__ = ["Streams"]

_END_S: Final = 10.0  # for a call that is being made
Arguments = tuple[Any, ...]
Answer = TypeVar("Answer")
# A call, its arguments, which of those that were begun with it, and where its answer goes.
_Asked = tuple[Callable[..., Any], Arguments, int, Callable[[tuple[int, Any]], None]]


class Streams:
    """Makes `count` calls at a time, in threads of its own; a single stream is the caller's thread.

    Whichever is free makes the next call, for some take longer than others. What is called must
    bear that.
    """

    def __init__(self, count: int = 1, threads: int = 1) -> None:
        """`threads`: of each call, on CPU; those of a single stream are the caller's to set."""
        self.count: Final = count
        self.threads: Final = threads
        # Plain queues: a pool's futures cost twice as long to hand over.
        self._asked: SimpleQueue[_Asked | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._run, name="stream", daemon=True)
            for _ in range(count if count > 1 else 0)
        ]
        for thread in self._threads:
            thread.start()

    def start(
        self, call: Callable[..., Answer], parts: Sequence[Arguments], *, here: bool = False
    ) -> Callable[[], list[Answer]]:
        """Begin to call with each part's arguments, behind what was begun before.

        Args:
            call: what is called.
            parts: the arguments of each call.
            here: whoever waits makes one stream's share of the calls, which is faster by a change
                of threads; for when nothing else was begun.

        Returns:
            Waits until all calls have ended, and gives what they gave, in the order of the parts;
            raises what one of them raised.
        """
        ended: SimpleQueue[tuple[int, Answer | Exception]] = SimpleQueue()
        own = range(0, len(parts), self.count) if here or self.count == 1 else range(0)
        for i, part in enumerate(parts):
            if i not in own:
                self._asked.put((call, part, i, ended.put))

        def wait() -> list[Answer]:
            answers = {i: _answer(call, parts[i]) for i in own}
            for _ in range(len(parts) - len(own)):
                i, answer = ended.get()
                answers[i] = answer
            found: list[Answer] = []
            for i in range(len(parts)):
                one = answers[i]
                if isinstance(one, Exception):
                    raise one
                found.append(one)
            return found

        return wait

    def map(self, call: Callable[..., Answer], parts: Sequence[Arguments]) -> list[Answer]:
        """The same, waited for."""
        with torch.inference_mode():
            return self.start(call, parts, here=True)()

    def close(self) -> None:
        """End the threads; nothing may be called any more.

        What a runtime keeps for each thread goes with it: seen, a process that ended meanwhile was
        aborted by OpenVINO.
        """
        for _ in self._threads:
            self._asked.put(None)
        for thread in self._threads:
            thread.join(_END_S)

    @torch.inference_mode()
    def _run(self) -> None:
        torch.set_num_threads(self.threads)
        while (asked := self._asked.get()) is not None:
            call, part, i, give = asked
            give((i, _answer(call, part)))
            del asked, part  # nothing is held while it waits


def _answer(call: Callable[..., Answer], part: Arguments) -> Answer | Exception:
    try:
        return call(*part)
    except Exception as fault:
        return fault
