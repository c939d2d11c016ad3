"""Layers that compute a row alike at every place of a batch.

On a GPU a library may share the sums of a batch out among its processors in a way that gives a row
other last bits at another place. Of Stable Diffusion 1.5's U-Net in float16 cuDNN does so with some
convolutions, which ones goes by card and shapes. Such a layer is given its rows one by one.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import structlog
import torch
from torch import Tensor, nn

__all__ = ["distinct", "is_steady", "make_steady", "row_by_row"]

_log = structlog.get_logger()

Call = Callable[..., Tensor]


class _RowByRow:
    """A layer's `forward` that takes batches of some shapes apart."""

    def __init__(self, whole: Call) -> None:
        self.whole = whole
        self.shapes: set[tuple[int, ...]] = set()

    def __call__(self, x: Tensor) -> Tensor:
        if tuple(x.shape) in self.shapes:
            return torch.cat([self.whole(row) for row in x.chunk(len(x))])
        return self.whole(x)


def make_steady(network: nn.Module, arguments: Sequence[Tensor]) -> None:
    """Find the layers whose answers depend on places, for arguments of these shapes, and mend them.

    What is found goes by device, library and shapes alone, so it is the same at every start.
    """
    rows, here = len(arguments[0]), threading.get_ident()
    found: list[tuple[nn.Module, tuple[int, ...]]] = []

    def check(layer: nn.Module, given: tuple[Any, ...], out: Tensor) -> None:
        x = given[0]
        if threading.get_ident() != here or len(x) != rows:
            return
        if any(not torch.equal(layer.forward(to(x)), to(out)) for to in _others(rows)):
            found.append((layer, tuple(x.shape)))

    with ExitStack() as stack:
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                stack.callback(layer.register_forward_hook(check).remove)
        network(*distinct(arguments))
    for layer, shape in found:
        if not isinstance(layer.forward, _RowByRow):
            layer.forward = _RowByRow(layer.forward)
        layer.forward.shapes.add(shape)
        _log.info("rows one by one", layer=type(layer).__name__, shape=shape)


def is_steady(call: Call, arguments: Sequence[Tensor]) -> bool:
    """Whether a row's answer is the same, bit by bit, at every place that is tried."""
    given = distinct(arguments)
    out = call(*given).clone()
    return all(torch.equal(call(*map(to, given)), to(out)) for to in _others(len(given[0])))


def row_by_row(call: Call) -> Call:
    """The call made for each row alone: slow, and right by construction."""

    def each(*arguments: Tensor) -> Tensor:
        rows = zip(*(one.chunk(len(one)) for one in arguments), strict=True)
        return torch.cat([call(*row) for row in rows])

    return each


def distinct(arguments: Sequence[Tensor]) -> list[Tensor]:
    """Arguments of the same shapes whose rows all differ."""
    dice = torch.Generator(arguments[0].device).manual_seed(0)
    return [
        torch.empty_like(one).normal_(generator=dice) if one.is_floating_point() else one.clone()
        for one in arguments
    ]


def _others(rows: int) -> Iterator[Call]:
    """Ways to give the rows other places, which keep the layout in memory."""
    yield lambda x: torch.empty_like(x).copy_(x.flip(0))
    if rows > 2:
        yield lambda x: torch.empty_like(x).copy_(x.roll(1, 0))
