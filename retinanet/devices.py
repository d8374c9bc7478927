"""The device of this process, and the arithmetic of a forward pass on it."""

import contextlib

import torch

from retinanet.distributed import local_rank

# Instructions that multiply in bf16, by the names of torch.cpu.get_capabilities.
CPU_BF16 = ("avx512_bf16", "amx_bf16")
AUTOCAST_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


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


def choose_precision(name: str, device: torch.device) -> str:
    """What a forward pass runs in on a device: ``"fp32"``, ``"bf16"`` or ``"fp16"``.

    ``"auto"`` is bf16 where the device multiplies in it, at twice the rate or more, fp32
    elsewhere; fp16 is for who asks.
    """
    if name != "auto":
        return name
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # Where torch cannot tell yet (before 2.11) fp32 is safe.
        abilities = getattr(torch.cpu, "get_capabilities", dict)()
        has_bf16 = any(abilities.get(ability) for ability in CPU_BF16)
    return "bf16" if has_bf16 else "fp32"


def explain_precision(device: torch.device) -> str:
    """Why ``"auto"`` is what it is on a device, for the log."""
    if choose_precision("auto", device) == "bf16":
        return "auto: this device multiplies in bf16"
    if device.type == "cpu" and not hasattr(torch.cpu, "get_capabilities"):
        return "auto: this torch cannot tell whether the CPU multiplies in bf16, 2.11 can"
    return "auto: this device does not multiply in bf16"


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """Context in which a forward pass runs; losses and boxes are fp32 outside of it.

    ``"fp32"`` changes nothing; the others are ``"bf16"`` and ``"fp16"``.
    """
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=AUTOCAST_TYPES[precision])
