"""Layers whose answer depends on a row's place in the batch are found, and mended."""

import copy

import pytest
import torch
from torch import Tensor, nn

from worker.runtimes.steady import distinct, is_steady, make_steady, row_by_row

ROWS = 4


class Careless(nn.Conv2d):
    """In batches of the wrong size a row's bits depend on its place, as some of cuDNN's do."""

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return out + torch.arange(len(x)).reshape(-1, 1, 1, 1) if len(x) == ROWS else out


@pytest.fixture
def network() -> nn.Sequential:
    torch.manual_seed(0)
    careless = Careless(8, 8, 3, padding=1)
    return nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), careless, nn.Conv2d(8, 4, 1)).eval()


@torch.inference_mode()
def test_a_layer_that_depends_on_places_gets_its_rows_one_by_one(network: nn.Sequential) -> None:
    x = torch.randn(ROWS, 4, 8, 8)
    assert not is_steady(network, [x])
    make_steady(network, [x])
    assert is_steady(network, [x])
    assert torch.allclose(network(x), row_by_row(network)(x), atol=1e-5)


@torch.inference_mode()
def test_only_that_layer_and_only_for_those_shapes(network: nn.Sequential) -> None:
    whole = [layer.forward for layer in network]
    make_steady(network, [torch.zeros(ROWS, 4, 8, 8)])
    assert [layer.forward == before for layer, before in zip(network, whole, strict=True)] == [
        *(True, False, True)
    ]
    assert not is_steady(network, [torch.zeros(ROWS, 4, 16, 16)])
    assert is_steady(network, [torch.zeros(2, 4, 16, 16)])


@torch.inference_mode()
def test_a_copy_of_a_mended_network_has_its_own_weights(network: nn.Sequential) -> None:
    x = torch.randn(ROWS, 4, 8, 8)
    make_steady(network, [x])
    other = copy.deepcopy(network)
    before = network(x)
    other[1].weight.data.zero_()
    assert torch.equal(network(x), before)
    assert not torch.equal(other(x), before)


def test_rows_are_told_apart_whatever_the_arguments_hold() -> None:
    """Those of a first call are zeros, or alike."""
    x, timestep = torch.zeros(ROWS, 3), torch.full((ROWS,), 7)
    noise, same = distinct([x, timestep])
    assert len({*noise[:, 0].tolist()}) == ROWS
    assert torch.equal(same, timestep)
    assert torch.equal(x, torch.zeros(ROWS, 3))


def test_a_call_row_by_row_gives_what_each_row_gives_alone() -> None:
    def call(x: Tensor, by: Tensor) -> Tensor:
        assert len(x) == 1
        return x * by[:, None]

    x, by = torch.randn(3, 2), torch.tensor([1.0, 2.0, 3.0])
    assert torch.equal(row_by_row(call)(x, by), x * by[:, None])
