"""Pictures a second against the loop most people start from: a pipeline of diffusers.

The peer is `StableDiffusionPipeline` itself, its prompts embedded and its latents not decoded, with
a `UNet2DConditionModel` of about as many parameters as our denoiser, which paints the same pixels.
"""

import importlib
import time
import warnings
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from app.jobs.record import JobRequest
from benchmarks.forward import network_of
from benchmarks.gemm import flops_of
from benchmarks.results import Result, interleaved, ratios, result
from benchmarks.subject import PROMPTS, Plan, engine_of, engine_threads, executed, loaded, row_specs
from models.bundle import Bundle
from models.torchvision_ops import declare_missing_operators
from models.unet import UNetConfig

__all__ = ["measure", "peer_network"]

STEPS: Final = 5
GUIDANCE_SCALE: Final = 3.0
_GROUPS = 8  # of the norms, as in our network


def measure(plan: Plan) -> list[Result]:
    """Pictures a second of both, and the same where each picture cost as many operations."""
    bundle, chosen = executed(plan)
    network = network_of(loaded(plan.settings).denoiser.network)
    peer = peer_network(network.config, parameters(network)).to(plan.device)
    found = interleaved(
        {"ours": _ours(plan, bundle), "diffusers": _theirs(peer, bundle, plan.device)},
        plan.seconds,
    )
    faster = ratios(found["diffusers"], found["ours"])
    work = flops_of(network, 2) / _peer_flops(network.config, peer, 2)
    what = f"engine ({chosen.name}) ÷ diffusers' pipeline"
    sizes = f"{parameters(network) / 1e6:.1f} and {parameters(peer) / 1e6:.1f} M parameters"
    return [
        result(
            f"pictures/s, {what}; {sizes}",
            faster,
            unit="times as many",
            at_least=2.0,
            command=plan.command,
        ),
        result(
            f"the same per equal FLOPs (ours has {work:.2f} of the peer's)",
            [ratio * work for ratio in faster],
            unit="times as many",
            at_least=None,
            command=plan.command,
        ),
    ]


def parameters(network: nn.Module) -> int:
    """How many numbers were learned."""
    return sum(one.numel() for one in network.parameters())


def peer_network(config: UNetConfig, wanted: int) -> Any:
    """A `UNet2DConditionModel` for our pictures and contexts with about `wanted` parameters."""
    base = min(range(8, 513, 8), key=lambda width: abs(_size(config, width) - wanted))
    return _unet(config, base).eval().requires_grad_(False)


def _size(config: UNetConfig, base: int) -> int:
    with torch.device("meta"):
        return parameters(_unet(config, base))


def _unet(config: UNetConfig, base: int) -> Any:
    plain = len(config.multipliers) - 1
    return _diffusers().UNet2DConditionModel(
        sample_size=config.image_size,
        in_channels=config.channels,
        out_channels=config.channels,
        layers_per_block=config.blocks,
        block_out_channels=tuple(base * one for one in config.multipliers),
        down_block_types=("DownBlock2D",) * plain + ("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",) + ("UpBlock2D",) * plain,
        cross_attention_dim=config.context_width,
        attention_head_dim=8,
        norm_num_groups=_GROUPS,
    )


def _diffusers() -> Any:
    """The package, which has no types; it imports transformers, and that torchvision."""
    declare_missing_operators()
    return importlib.import_module("diffusers")


def _peer_flops(config: UNetConfig, peer: Any, rows: int) -> int:
    """Counted on a copy without values, whose attention is made of products the counter knows."""
    from diffusers.models.attention_processor import AttnProcessor

    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        copy = _unet(config, peer.config.block_out_channels[0] // config.multipliers[0])
        copy.set_attn_processor(AttnProcessor())
        x = torch.zeros(rows, config.channels, config.image_size, config.image_size)
        copy(x, torch.zeros(rows).long(), torch.zeros(rows, 1, config.context_width))
    return int(counter.get_total_flops())


def _ours(plan: Plan, bundle: Bundle) -> Callable[[], float]:
    @engine_threads(plan)
    def draw() -> float:
        began = time.perf_counter()
        engine = engine_of(plan, bundle, len(PROMPTS))
        for job, prompt in enumerate(PROMPTS):
            engine.admit(row_specs(bundle, _request(prompt, job), str(job)))
        while not engine.idle:
            engine.step()
        return time.perf_counter() - began

    return draw


def _request(prompt: str, seed: int) -> JobRequest:
    return JobRequest(
        prompt=prompt,
        model="",
        seed=seed,
        steps=STEPS,
        sampler="ddim",
        guidance_scale=GUIDANCE_SCALE,
        size="",
        background="transparent",
    )


def _theirs(peer: Any, bundle: Bundle, device: torch.device) -> Callable[[], float]:
    pipeline = _pipeline(peer)
    contexts = bundle.context.encode(PROMPTS)[:, None]  # [B, 1, D]: a sequence of one token
    empty = bundle.context.empty.expand_as(contexts)
    side = bundle.config.image_size * pipeline.vae_scale_factor

    def draw() -> float:
        began = time.perf_counter()
        generators = [torch.Generator().manual_seed(seed) for seed in range(len(contexts))]
        pipeline(
            prompt_embeds=contexts,
            negative_prompt_embeds=empty,
            height=side,
            width=side,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE_SCALE,
            generator=generators,
            output_type="latent",
        )
        return time.perf_counter() - began

    return draw


def _pipeline(peer: Any) -> Any:
    diffusers = _diffusers()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of parts that it is not given
        pipeline = diffusers.StableDiffusionPipeline(
            vae=None,
            text_encoder=None,
            tokenizer=None,
            unet=peer,
            scheduler=diffusers.DDIMScheduler(
                prediction_type="v_prediction",
                clip_sample=False,
                timestep_spacing="trailing",
                steps_offset=1,
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
