"""The device of this process, and the arithmetic of a forward pass on it."""

import contextlib
import functools

import torch

from retinanet.config import DEVICES
from retinanet.distributed import local_rank

# Instructions that multiply in bf16, by the names of torch.cpu.get_capabilities.
CPU_BF16 = ("avx512_bf16", "amx_bf16")
# Of the largest value: roundings of sums of 64 to 3136 products come to 0.01 at most.
MAX_BF16_ERROR = 0.05
AUTOCAST_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str | int | torch.device) -> torch.device:
    """The device of this process.

    Args:
        name: ``"auto"``, ``"cpu"``, ``"cuda"``, whose index is the local rank, ``"cuda:1"`` or 1,
            or ``"mps"``, the GPU of a Mac, which ``"auto"`` leaves alone: nobody has measured it.

    Raises:
        ValueError: a device that this machine lacks, or fewer GPUs than processes.
    """
    name = f"cuda:{name}" if type(name) is int else str(name)
    kind, _, index = name.partition(":")
    if kind not in DEVICES.choices or (index and (kind == "auto" or not index.isdecimal())):
        raise ValueError(f"device must {DEVICES}, or cuda:N, got {name}.")
    if name == "auto":
        name = kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cpu":
        return torch.device("cpu")
    if kind == "mps":
        if not torch.backends.mps.is_available():
            raise ValueError("device=mps, but torch finds no GPU of Apple; use device=cpu.")
        return torch.device("mps")
    if not torch.cuda.is_available():
        raise ValueError(
            f"device={name}, but torch finds no GPU; use device=cpu, or install a CUDA build of "
            f"torch."
        )
    if index and int(index) >= torch.cuda.device_count():
        raise ValueError(f"device={name}: this machine has {torch.cuda.device_count()} GPUs.")
    if not index and local_rank() >= torch.cuda.device_count():
        raise ValueError(
            f"local rank {local_rank()} has no GPU: this machine has {torch.cuda.device_count()}. "
            f"Start at most as many processes with torchrun --nproc-per-node."
        )
    device = torch.device("cuda", int(index) if index else local_rank())
    torch.cuda.set_device(device)
    return device


def choose_precision(name: str, device: torch.device) -> str:
    """What a forward pass runs in on a device: ``"fp32"``, ``"bf16"`` or ``"fp16"``.

    ``"auto"`` is bf16 where the device multiplies in it, at twice the rate or more, and correctly
    (:func:`bf16_error`), fp32 elsewhere; fp16 is for who asks.
    """
    if name != "auto":
        return name
    return "bf16" if _has_bf16(device) and bf16_error(device) <= MAX_BF16_ERROR else "fp32"


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    # Where torch cannot tell yet (before 2.11) fp32 is safe.
    abilities = getattr(torch.cpu, "get_capabilities", dict)()
    return any(abilities.get(ability) for ability in CPU_BF16)


@functools.cache
def bf16_error(device: torch.device) -> float:
    """Largest error of small bf16 convolutions and their gradients on a device, beside fp32.

    As a share of the largest value; inf where one is not finite. A platform's kernels can be
    wrong, and are least tested where maps are small. Maps of one row or column are left out:
    :mod:`retinanet.model.convolution` computes them in fp32 where they are known to be wrong.
    """
    worst = 0.0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for kernel, stride in ((1, 1), (3, 1), (3, 2), (7, 2)):
            layer = torch.nn.Conv2d(64, 64, kernel, stride, kernel // 2)
            layer.to(device, memory_format=torch.channels_last)
            for h, w in ((4, 4), (4, 9), (9, 4)):
                x = torch.randn(2, 64, h, w).to(device, memory_format=torch.channels_last)
                x.requires_grad_()
                found = {}
                for precision in ("fp32", "bf16"):
                    with autocast(device, precision):
                        y = layer(x)
                    found[precision] = [y, *torch.autograd.grad(y.sum(), [x, *layer.parameters()])]
                for exact, rounded in zip(found["fp32"], found["bf16"], strict=True):
                    error = (rounded.float() - exact).abs().max() / exact.abs().max()
                    worst = max(worst, error.nan_to_num(torch.inf).item())
    return worst


def explain_precision(device: torch.device) -> str:
    """Why ``"auto"`` is what it is on a device, for the log."""
    if choose_precision("auto", device) == "bf16":
        return "auto: this device multiplies in bf16"
    if device.type == "cpu" and not hasattr(torch.cpu, "get_capabilities"):
        return "auto: this torch cannot tell whether the CPU multiplies in bf16, 2.11 can"
    if _has_bf16(device):
        return f"auto: bf16 is wrong on this device, by {bf16_error(device):.0%}"
    return "auto: this device does not multiply in bf16"


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """Context in which a forward pass runs; losses and boxes are fp32 outside of it.

    ``"fp32"`` changes nothing; the others are ``"bf16"`` and ``"fp16"``.
    """
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=AUTOCAST_TYPES[precision])
