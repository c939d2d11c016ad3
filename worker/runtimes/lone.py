"""A call of the network that no other is beside: by one stream's threads, or by those of all."""

import time
from collections import defaultdict
from typing import Final

from torch import Tensor, nn

from models.unet import Denoiser

__all__ = ["Lone"]

_TRIALS: Final = 4  # calls, both ways by turns; the first of each takes longer than others will
_TRY_EVERY: Final = 32  # calls after that, the way that was slower
_NEWEST: Final = 0.3  # weight of the last call in a mean


class _Pace:
    """How long calls have taken of late."""

    def __init__(self) -> None:
        self._seconds = [0.0, 0.0]  # of either way
        self._calls = 0

    def choose(self) -> int:
        """The way to make the next call."""
        if self._calls < _TRIALS:
            return self._calls % 2
        faster = int(self._seconds[1] < self._seconds[0])
        return 1 - faster if self._calls % _TRY_EVERY == 0 else faster

    def note(self, way: int, seconds: float) -> None:
        """It was made, and took so long."""
        newest = _NEWEST if self._calls >= _TRIALS else 1.0
        self._seconds[way] += newest * (seconds - self._seconds[way])
        self._calls += 1


class Lone(nn.Module):
    """Makes each call in the way that has been faster of late; the bits of both are the same.

    With nothing else on the machine all threads take two thirds of the time. Beside other work they
    wait for one another within each layer, and may take half as long again. So both are timed,
    apart for each part of the network.
    """

    def __init__(self, narrow: Denoiser, wide: Denoiser) -> None:
        """`narrow`: on the threads of one stream; `wide`: on all."""
        super().__init__()
        self._ways = (narrow, wide)
        self._part = narrow.part
        self._paces: defaultdict[int, _Pace] = defaultdict(_Pace)

    def forward(self, x: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        """As of either denoiser."""
        pace = self._paces[self._part(float(timestep[0]))]
        way = pace.choose()
        began = time.perf_counter()
        out: Tensor = self._ways[way](x, timestep, context)
        pace.note(way, time.perf_counter() - began)
        return out
