"""Muon against the definition it approximates."""

import pytest
import torch

from models.train import muon
from models.train.muon import Muon, orthogonalised


@pytest.mark.parametrize(("bf16", "tolerance"), [(False, 1e-3), (True, 0.03)])
@pytest.mark.parametrize("shape", [(16, 16), (16, 144), (96, 32)])
def test_singular_values_come_near_one(
    shape: tuple[int, int], bf16: bool, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(muon, "has_fast_bf16", lambda device_type: bf16)
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    made = orthogonalised(matrix)
    values = torch.linalg.svdvals(made)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    assert float(values.min()) > 0.6
    assert float(values.max()) < 1.3
    # The same singular vectors, so that the update points where the gradient does.
    middle = u.T @ made @ v.T
    assert float((middle - middle.diag().diag()).abs().max()) < tolerance


@pytest.mark.parametrize("bf16", [False, True])
def test_a_matrix_of_almost_one_direction_stays_finite(
    bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As gradients are; the Gram matrix in bf16 ran off to NaN on these."""
    monkeypatch.setattr(muon, "has_fast_bf16", lambda device_type: bf16)
    torch.manual_seed(0)
    matrix = torch.logspace(0, -6, 128)[:, None] * torch.randn(128, 1152)
    assert float(torch.linalg.svdvals(orthogonalised(matrix)).max()) < 1.3


def test_a_convolution_learns_a_known_filter() -> None:
    torch.manual_seed(0)
    wanted = torch.nn.Conv2d(8, 8, 3, bias=False)
    learner = torch.nn.Conv2d(8, 8, 3, bias=False)
    optimizer = Muon(learner.parameters(), lr=0.02, weight_decay=0.0)
    x = torch.randn(16, 8, 8, 8)
    first = last = 0.0
    for step in range(200):
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * (1 - step / 200)
        loss = (learner(x) - wanted(x)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        first, last = first or loss.item(), loss.item()
    assert last < 0.01 * first
