"""The form in which networks are written as ONNX."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.layers import ResBlock
from models.unet import UNet, UNetConfig
from worker.runtimes import onnx_file as written
from worker.runtimes.networks import example

CONFIG = UNetConfig(
    image_size=16, context_width=8, width=8, multipliers=(1, 2, 3), blocks=2, attention_levels=(2,)
)


@pytest.fixture
def network() -> UNet:
    """All weights random, those that begin at zero or one too."""
    torch.manual_seed(5)
    made = UNet(CONFIG).eval()
    with torch.no_grad():
        for one in made.parameters():
            one.copy_(0.3 * torch.randn(one.shape))
    return made


def arguments(network: UNet, rows: int) -> tuple[Tensor, ...]:
    return example(network, rows, torch.device("cpu"))


@pytest.mark.parametrize("rows", [1, 3])
@torch.inference_mode()
def test_the_rewritten_network_computes_the_same(network: UNet, rows: int) -> None:
    given = arguments(network, rows)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    expected = network(*given)
    rewritten = written._rewritten(network)
    torch.testing.assert_close(rewritten(*given), expected, rtol=1e-4, atol=1e-4)
    assert expected.abs().max() > 0.1
    # And the network itself is as it was: others may draw with it.
    assert network.state_dict().keys() == before.keys()
    assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())


@torch.inference_mode()
def test_second_norms_have_no_weights_of_their_own(network: UNet) -> None:
    blocks = [one for one in written._rewritten(network).modules() if isinstance(one, ResBlock)]
    assert blocks
    assert all(one.norm_out.weight is None for one in blocks)


@torch.inference_mode()
def test_the_file_computes_the_same(network: UNet, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    given = arguments(network, 2)
    file = written.onnx_file(network, given, tmp_path / "network.onnx")
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    named = {name: one.numpy() for name, one in zip(written.INPUTS, given, strict=True)}
    [out] = session.run([written.OUTPUT], named)
    torch.testing.assert_close(torch.from_numpy(out), network(*given), rtol=1e-4, atol=1e-4)
    assert not any(
        node.op_type == "DepthToSpace" for node in _nodes(file) if "upsample" in node.name
    )


def _nodes(file: str) -> list[Any]:
    onnx = pytest.importorskip("onnx")
    return list(onnx.load(file).graph.node)
