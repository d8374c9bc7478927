"""The device of this process, and the arithmetic of a forward pass on it."""

import contextlib

import torch

from retinanet.distributed import local_rank

_AUTOCAST_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str) -> torch.device:
    """The device of this process.

    Args:
        name: ``"auto"``, ``"cpu"`` or ``"cuda"``; the GPU's index is the local rank.

    Raises:
        ValueError: ``"cuda"`` on a machine without it, or with fewer GPUs than processes.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError(
            "device=cuda, but torch finds no GPU; use device=cpu, or install a CUDA build of torch."
        )
    if local_rank() >= torch.cuda.device_count():
        raise ValueError(
            f"local rank {local_rank()} has no GPU: this machine has {torch.cuda.device_count()}. "
            f"Start at most as many processes with torchrun --nproc-per-node."
        )
    device = torch.device("cuda", local_rank())
    torch.cuda.set_device(device)
    return device


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """Context in which a forward pass runs; losses and boxes are fp32 outside of it.

    Args:
        device: of the model.
        precision: ``"fp32"`` (nothing changes), ``"bf16"`` or ``"fp16"``.
    """
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=_AUTOCAST_TYPES[precision])
