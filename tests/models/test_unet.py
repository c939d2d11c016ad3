"""The denoising network and the parameterisations behind one contract."""

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from models.schedule import noise_schedule
from models.unet import Denoiser, UNet, UNetConfig

CONFIG = UNetConfig(
    image_size=12, context_width=8, patch=3, width=16, multipliers=(1, 2), attention_levels=(1,)
)


def awake(network: nn.Module) -> nn.Module:
    for parameter in network.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.1)
    return network


@torch.inference_mode()
def test_every_condition_matters() -> None:
    torch.manual_seed(0)
    network = awake(UNet(CONFIG))
    x, t, context = torch.randn(1, 4, 12, 12), torch.tensor([10]), torch.randn(1, 8)
    base = network(x, t, context)
    assert base.shape == x.shape
    for changed in (
        network(x + 1, t, context),
        network(x, t + 500, context),
        network(x, t, -context),
    ):
        assert float((base - changed).abs().max()) > 1e-4


def test_a_new_network_predicts_zero() -> None:
    out = UNet(CONFIG)(torch.randn(2, 4, 12, 12), torch.tensor([1, 2]), torch.randn(2, 8))
    assert torch.equal(out, torch.zeros_like(out))


def test_gradients_reach_every_parameter() -> None:
    torch.manual_seed(0)
    network = awake(UNet(CONFIG))
    network(
        torch.randn(2, 4, 12, 12), torch.tensor([5, 900]), torch.randn(2, 8)
    ).square().sum().backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_a_wrong_size_is_refused_with_the_right_one() -> None:
    with pytest.raises(ValueError, match=r"\(4, 8, 8\); this network takes \(4, 12, 12\)"):
        UNet(CONFIG)(torch.zeros(1, 4, 8, 8), torch.tensor([0]), torch.zeros(1, 8))


def test_a_size_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValidationError, match="need a multiple of 6"):
        UNetConfig(image_size=16, context_width=8, patch=3, multipliers=(1, 2))


class Oracle(nn.Module):
    """Predicts what each parameterisation asks for, from the true x_0 and ε."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x_t: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        return self.answer


@pytest.mark.parametrize("parameterisation", ["eps", "v", "denoised"])
def test_every_parameterisation_answers_with_the_noise(parameterisation: str) -> None:
    schedule = noise_schedule()
    x_0, eps = torch.rand(3, 4, 2, 2) * 2 - 1, torch.randn(3, 4, 2, 2)
    t = torch.tensor([20, 400, 900])
    x_t = schedule.add_noise(x_0, eps, t)
    alpha = schedule.per_row(schedule.alphas_cumprod.sqrt(), t, x_0)
    sigma = schedule.per_row((1 - schedule.alphas_cumprod).sqrt(), t, x_0)
    answers = {"eps": eps, "v": alpha * eps - sigma * x_0, "denoised": x_0}
    denoiser = Denoiser(Oracle(answers[parameterisation]), schedule, parameterisation)  # type: ignore[arg-type]
    assert torch.allclose(denoiser.eps(x_t, t, torch.zeros(3, 1)), eps, atol=1e-4)
