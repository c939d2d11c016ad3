"""CUDA graphs: the bits of the plain network, whatever the shapes; where there is a GPU."""

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models.bundle import Bundle, load_bundle
from models.loading import load_model
from models.stable_diffusion.loading import import_folder
from models.stable_diffusion.pipeline import Pipeline
from tests.models.tiny_diffusers import build_pipeline
from tests.worker.test_engine import alone, drain, random_spec
from worker.engine import Engine
from worker.runtimes.by_torch import runtime_name, with_fused_decoder, with_fused_graph, with_graphs
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


def imported(folder: Path, device: str) -> Pipeline:
    import_folder(build_pipeline(folder / "source", "sd1"), folder / "m", "mine")
    return load_model(folder / "m", device)  # type: ignore[return-value]


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    return imported(tmp_path, "cuda")


def test_a_decoder_that_cannot_be_compiled_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fuse(*_: object) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(Graphed, "fuse", fuse)
    model = imported(tmp_path, "cpu")
    assert with_fused_decoder(model, tmp_path) is model


@torch.inference_mode()
def test_only_what_was_fused_takes_the_place_of_a_decoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fuse(graphed: Graphed, given: list[Tensor], _: Path) -> None:
        graphed._fused[tuple((one.shape, one.dtype) for one in given)] = torch.zeros_like  # type: ignore[assignment]

    monkeypatch.setattr(Graphed, "fuse", fuse)
    model = imported(tmp_path, "cpu")
    fused, native = with_fused_decoder(model, tmp_path), model.shape(model.sizes[0])
    other = torch.randn(native[0], native[1] // 2, native[2])
    assert fused.preview(torch.randn(native)).count_nonzero() == 0
    assert torch.equal(fused.preview(other), model.preview(other))


@needs_gpu
def test_pixels_are_the_same_whoever_else_asks_for_some(pipeline: Pipeline, tmp_path: Path) -> None:
    fused = with_fused_graph(pipeline, 2, tmp_path / "runtimes")
    size = pipeline.sizes[0]
    latents = [torch.randn(pipeline.shape(size)) for _ in range(8)]
    plain = [pipeline.develop(one, size) for one in latents]
    alone = [fused.develop(one, size) for one in latents]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            among = pool.map(lambda one: fused.develop(one.cuda(), size), latents)
            assert all(map(torch.equal, among, alone))
    for ours, one in zip(alone, plain, strict=True):  # torch's convolutions round to TF32
        assert torch.allclose(ours, one, atol=0.05)
    assert {one.device.type for one in alone} == {"cpu"}


@needs_gpu
def test_sizes_that_were_not_fused_are_decoded_as_before(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    fused = with_fused_graph(pipeline, 2, tmp_path / "runtimes")
    latents = torch.randn(4, 4, 6)
    assert torch.equal(fused.preview(latents), pipeline.preview(latents))


@needs_gpu
def test_rows_of_an_engine_that_works_ahead_are_those_of_rows_alone(bundle_path: Path) -> None:
    bundle, dice = load_bundle(bundle_path, "cuda"), random.Random(3)
    specs = [random_spec(bundle, f"{i}", dice, longest=9) for i in range(24)]
    engine = Engine(bundle, 6, 4)
    for one in specs:
        engine.admit([one])
    pictures = drain(engine)
    assert all(torch.equal(pictures[f"{one.job}/0"], alone(bundle, one, 4)) for one in specs)
