"""Several processes on one training run, as torchrun starts them: each draws its own pictures."""

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def start(device: torch.device) -> torch.device:
    """Join the process group that torchrun's environment names, if any; returns this one's device.

    CPU processes talk through gloo, CUDA processes (one per GPU) through NCCL.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or dist.is_initialized():
        return device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return device


def stop() -> None:
    """Leave the process group, if one was joined."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def synchronised(network: nn.Module) -> nn.Module:
    """`network` with its gradients averaged over all processes in every backward pass."""
    if world_size() == 1:
        return network
    wrapped: Any = DistributedDataParallel(network, gradient_as_bucket_view=True)
    return wrapped  # type: ignore[no-any-return]


def agree(value: float, device: torch.device) -> float:
    """The first process's `value`, in every process."""
    if world_size() == 1:
        return value
    shared = torch.tensor([value], dtype=torch.float64, device=device)
    dist.broadcast(shared, src=0)
    return float(shared.item())
