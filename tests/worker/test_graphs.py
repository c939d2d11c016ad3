"""CUDA graphs: the bits of the plain network, whatever the shapes; where there is a GPU."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models.bundle import Bundle, load_bundle
from worker.runtimes.by_torch import runtime_name, with_graphs
from worker.runtimes.graphs import Graphed
from worker.runtimes.networks import available, example

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def test_graphs_are_offered_on_a_gpu_alone() -> None:
    assert not any("graphs" in name or "fp16" in name for name in available(torch.device("cpu")))
    assert {"graphs", "graphs-fp16", "compile-fp16"} <= {*available(torch.device("cuda"))}


def test_without_a_gpu_a_model_stays_as_it_is(shared_bundle: Bundle) -> None:
    assert with_graphs(shared_bundle) is shared_bundle
    assert runtime_name(shared_bundle) == f"eager {torch.__version__}"


def test_rows_with_loras_are_drawn_without_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    class Network(nn.Module):
        def forward(self, x: Tensor, timestep: Tensor, adapters: object = None) -> Tensor:
            return x if adapters is None else x + 1

    graphed, x = Graphed(Network()), torch.zeros(2, 3)
    monkeypatch.setattr(graphed, "_graph", lambda given: graphed.network)
    timestep = torch.zeros(2, dtype=torch.int64)
    assert torch.equal(graphed(x, timestep, adapters=[None, None]), x)
    assert torch.equal(graphed(x, timestep, adapters=[None, object()]), x + 1)


@needs_gpu
@torch.inference_mode()
def test_a_graph_gives_the_bits_of_the_network(bundle_path: Path) -> None:
    bundle = load_bundle(bundle_path, "cuda")
    network = bundle.denoiser.network
    graphed = Graphed(network)
    for rows in (1, 2, 8, 2):
        arguments = example(network, rows, torch.device("cuda"))  # type: ignore[arg-type]
        first = graphed(*arguments)
        assert torch.equal(first, network(*arguments))
        graphed(*(one.flip(0) for one in arguments))
        assert torch.equal(first, network(*arguments))  # it is nobody else's


@needs_gpu
@torch.inference_mode()
def test_whole_and_fractional_timesteps_are_of_one_graph(bundle_path: Path) -> None:
    bundle = load_bundle(bundle_path, "cuda")
    graphed = Graphed(bundle.denoiser.network)
    x, timestep, context = example(bundle.denoiser.network, 2, torch.device("cuda"))  # type: ignore[arg-type]
    assert torch.equal(graphed(x, timestep, context), graphed(x, timestep.float(), context))
    assert len(graphed._graphs) == 1
