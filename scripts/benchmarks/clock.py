"""Contestants take turns; what counts is the ratio of two that ran next to each other."""

from __future__ import annotations

import ctypes
import functools
import gc
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm import tqdm

from retinanet.terminal import has_bar

MIB = 2**20
# Repetitions that the peak rate is measured with; the first two warm up.
PEAK_TURNS = 8
# mallopt's names, malloc.h of glibc.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
# torch's profiler writes its own news to stderr below this.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")


@dataclass(frozen=True, slots=True)
class Stage:
    """Work that several can do."""

    name: str
    contestants: dict[str, Callable[[], object]]  # the peer first
    device: torch.device = torch.device("cpu")
    flops: float | None = None  # of one turn, for the share of the limit
    images: int | None = None  # of one turn
    errors: dict[str, float] | None = None  # of each contestant's loss, relative to its fp32


@dataclass(frozen=True, slots=True)
class Timing:
    """One contestant."""

    seconds: list[float] = field(default_factory=list)
    peak_mib: float | None = None  # above what was held before
    # Seconds of one turn by torch's operator, on a GPU by kernel; the rest it waited for the host.
    operators: dict[str, float] = field(default_factory=dict)

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)


def race(stage: Stage, repeats: int) -> dict[str, Timing]:
    """Let every contestant warm up, measure its memory and operators, then time them in turns.

    Args:
        stage: what to do.
        repeats: turns of each.
    """
    timings = {}
    for name, work in stage.contestants.items():
        work()
        timings[name] = Timing(
            peak_mib=peak_of(work, stage.device), operators=operators_of(work, stage.device)
        )
    for _ in tqdm(range(repeats), desc=stage.name, unit="turn", leave=False, disable=not has_bar()):
        for name, work in stage.contestants.items():
            wait(stage.device)
            start = time.perf_counter()
            work()
            wait(stage.device)
            timings[name].seconds.append(time.perf_counter() - start)
    return timings


def wait(device: torch.device) -> None:
    """Until a GPU is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def ratios(peer: Timing, ours: Timing) -> tuple[float, float, float]:
    """Median, smallest and largest of the speeds relative to the peer's turn in the same round."""
    values = [a / b for a, b in zip(peer.seconds, ours.seconds, strict=True)]
    return statistics.median(values), min(values), max(values)


def peak_of(work: Callable[[], object], device: torch.device) -> float | None:
    """MiB above what was held before, at most; None where the system does not tell."""
    gc.collect()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        wait(device)
        return (torch.cuda.max_memory_allocated() - before) / MIB
    status, switch = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not switch.exists():
        return None
    ctypes.CDLL(None).malloc_trim(0)
    switch.write_text("5")  # the peak starts anew
    before = _kib(status, "VmRSS")
    work()
    return (_kib(status, "VmHWM") - before) / 1024


def operators_of(work: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Seconds that each of torch's operators, on a GPU each kernel, takes by itself in one turn."""
    on_gpu = device.type == "cuda"
    activity = "CUDA" if on_gpu else "CPU"
    with torch.profiler.profile(
        activities=[getattr(torch.profiler.ProfilerActivity, activity)]
    ) as profiler:
        work()
        wait(device)
    seconds = {
        event.key: (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6
        for event in profiler.key_averages()
    }
    return {name: value for name, value in seconds.items() if value > 0}


def _kib(status: Path, name: str) -> int:
    (line,) = (line for line in status.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1])


def fix_allocator() -> None:
    """Make glibc keep what is freed: by default it maps every tensor above 32 MiB afresh."""
    libc = ctypes.CDLL("libc.so.6")
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


@functools.cache
def peak_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s that the device reaches at its best, measured.

    On a CPU with the convolution that RetinaNet does most, 3 x 3 with 256 channels on P3; on a GPU
    with the product of two square matrices of 8192, in bf16 for everybody.
    """
    if device.type == "cuda":
        a, b = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(2))
        work, flops = lambda: a @ b, 2 * 8192**3
    else:
        x = torch.randn(2, 256, 100, 168, dtype=dtype)
        conv = torch.nn.Conv2d(256, 256, 3, padding=1, bias=False, dtype=dtype)
        layout = {"memory_format": torch.channels_last}
        x, conv = x.to(**layout), conv.to(**layout)
        work, flops = lambda: conv(x), 2 * conv.weight.numel() * x[:, 0].numel()
    seconds = []
    with torch.inference_mode():
        for _ in range(PEAK_TURNS):
            wait(device)
            start = time.perf_counter()
            work()
            wait(device)
            seconds.append(time.perf_counter() - start)
    return flops / statistics.median(seconds[2:])
