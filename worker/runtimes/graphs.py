"""CUDA graphs: what a call of a network launches is recorded once, and launched as one thereafter.

A small network on a GPU waits for the processor to launch its hundreds of kernels; a graph has
them all in one launch, and they are the same kernels on the same shapes, so the bits stay.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog
import torch
from torch import Tensor, nn

from worker.runtimes.steady import is_steady, make_steady, row_by_row

__all__ = ["Graphed", "compiled"]

_log = structlog.get_logger()

_MOST: Final = 8  # graphs that are kept: those of as many shapes of x_t and of contexts
_FIRST_CALLS: Final = 3  # before recording, in which libraries set up what they keep
_RECORDING: Final = threading.Lock()  # it begins by waiting for the device, which ends another's


def compiled(network: nn.Module, folder: Path) -> nn.Module:
    """The network with its operations fused by torch's compiler, which takes seconds to minutes.

    What it makes is kept in `folder`.
    """
    # Else in the system's folder for what need not last.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder / "inductor"))
    return torch.compile(network, dynamic=False)  # type: ignore[return-value]


@dataclass(frozen=True, eq=False)
class _Graph:
    graph: torch.cuda.CUDAGraph
    arguments: tuple[Tensor, ...]  # that it reads
    out: Tensor  # that it writes

    def __call__(self, *given: Tensor) -> Tensor:
        for read, one in zip(self.arguments, given, strict=True):
            read.copy_(one)
        self.graph.replay()
        return self.out


class Graphed(nn.Module):
    """A network on a GPU, one graph for each set of its arguments' shapes; recorded when it comes.

    A row's answer is the same at every place of the batch (`steady`). Not for two threads at a
    time. Calls with LoRAs are made without a graph: they differ.
    """

    def __init__(self, network: nn.Module, *, records: bool = True) -> None:
        """`records`: else only what was fused is a graph, and other shapes are called plainly."""
        super().__init__()
        self.network = network
        self._records = records
        self._graphs: OrderedDict[tuple[Any, ...], _Graph] = OrderedDict()
        self._fused: dict[tuple[Any, ...], _Graph] = {}
        self._pool: Any = None  # of memory, which all graphs share: one runs at a time

    @torch.inference_mode()
    def fuse(self, arguments: Sequence[Tensor], folder: Path) -> None:
        """Have the compiler make the graph of these shapes; takes a minute for a large network."""
        given = _as_floats(arguments)
        make_steady(self.network, given)
        graph = self._recorded(compiled(self.network, folder), given)
        if is_steady(graph, given):
            self._fused[_key(given)] = graph
        else:
            _log.warning("not compiled: rows would depend on places", shape=tuple(given[0].shape))

    @property
    def is_fused(self) -> bool:
        """Whether the compiler made the graph of some shapes."""
        return bool(self._fused)

    @torch.inference_mode()
    def forward(self, *arguments: Tensor, adapters: Sequence[object] = ()) -> Tensor:
        """As of the network; the answer is the caller's."""
        given = _as_floats(arguments)
        if not self._records and _key(given) not in self._fused:
            return self.network(*given)  # type: ignore[no-any-return]
        graph = self._graph(given)
        if any(one is not None for one in adapters):
            return self.network(*given, adapters=adapters)  # type: ignore[no-any-return]
        return graph(*given).clone()

    def _graph(self, arguments: Sequence[Tensor]) -> _Graph:
        key = _key(arguments)
        if key in self._fused:
            return self._fused[key]
        if key not in self._graphs:
            while len(self._graphs) >= _MOST:
                self._graphs.popitem(last=False)
            make_steady(self.network, arguments)
            self._graphs[key] = self._record(arguments)
        self._graphs.move_to_end(key)
        return self._graphs[key]

    def _record(self, given: Sequence[Tensor]) -> _Graph:
        """A graph of the network; row by row where the whole does not treat rows alike."""
        graph = self._recorded(self.network, given)
        if is_steady(graph, given):
            return graph
        _log.warning("network called row by row", shape=tuple(given[0].shape))
        return self._recorded(row_by_row(self.network), given)

    def _recorded(self, network: Callable[..., Tensor], given: Sequence[Tensor]) -> _Graph:
        with _RECORDING, torch.cuda.device(given[0].device):
            arguments = tuple(one.clone() for one in given)
            beside: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            beside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(beside):
                for _ in range(_FIRST_CALLS):
                    network(*arguments)
            torch.cuda.current_stream().wait_stream(beside)
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            # Other threads decode pictures meanwhile, which is none of this graph's.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                out = network(*arguments)
        return _Graph(graph, arguments, out)


def _as_floats(arguments: Sequence[Tensor]) -> list[Tensor]:
    """Whole timesteps as others are, so that a batch of both is of the same graph."""
    return [one if one.is_floating_point() else one.float() for one in arguments]


def _key(arguments: Sequence[Tensor]) -> tuple[Any, ...]:
    return tuple((one.shape, one.dtype) for one in arguments)
