"""Time this package beside the public code of its peers, in turns, on this machine.

  loss         focal loss, forward and backward, at COCO's size
  matching     anchors to 1, 5, 50 and 300 boxes at COCO's size
  postprocess  from outputs to detections at COCO's size
  step         a training step of R50 at 512 px and of R18 at 256 px, fp32 and bf16
  detections   500,000 detections from the network's side to the evaluator's
  coco-step    a training step of R50 at COCO's size, 800 x 1344 (minutes)
  inference    R50 at 512 px
  data         image files to a batch, one core (with --photos FOLDER)
  evaluation   5000 images and 500,000 detections to COCO's curves (minutes)

What counts is the speed beside the peer's turn in the same round: median, smallest, largest. Each
stage runs twice, with the machine's allocator as it is and with glibc's set to keep what it has:
by default glibc maps every tensor above 32 MiB afresh, which slows down whoever makes more of them.

  python -m scripts.benchmark loss matching postprocess
  python -m scripts.benchmark --output runs/benchmark.json      # everything but the minutes
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torchvision
from tqdm import tqdm

from retinanet.atomic import write_whole
from retinanet.terminal import has_bar
from scripts.benchmark_stages import Stage, stages
from scripts.command_line import exit_status, new_parser

QUICK = ("loss", "matching", "postprocess", "step", "inference", "detections")
SLOW = ("coco-step", "data", "evaluation")
ALLOCATORS = ("shipped", "fixed")
# Operators of a contestant that are kept.
SLOWEST = 5
MIB = 2**20
# Repetitions that the peak rate is measured with; the first two warm up.
PEAK_TURNS = 8
# mallopt's names, malloc.h of glibc.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
# torch's profiler writes messages to stderr below this.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")


def main(arguments: Sequence[str] | None = None) -> int:
    """Time what is asked for, print it as Markdown, and keep it as JSON."""
    parser = new_parser("benchmark", __doc__)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help="default: the quick ones")
    parser.add_argument("--repeats", type=int, default=7, help="turns of each (default: 7)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--allocator", choices=(*ALLOCATORS, "both"), default="both")
    parser.add_argument("--photos", type=Path, help="folder of JPEG files, for the stage data")
    parser.add_argument("--output", type=Path, help="JSON, added to if it exists")
    args = parser.parse_args(arguments)
    unknown = [name for name in args.stages if name not in QUICK + SLOW]
    if unknown:
        parser.error(f"no stage {', '.join(unknown)}; there are {', '.join(QUICK + SLOW)}")
    if "data" in args.stages and args.photos is None:
        parser.error("the stage data needs --photos FOLDER")
    if args.repeats < 1:
        parser.error("give at least one repeat")
    if args.allocator != "shipped" and platform.libc_ver()[0] != "glibc":
        parser.error("only glibc's allocator can be fixed; use --allocator shipped")
    return exit_status(lambda: compare(args))


def compare(args: argparse.Namespace) -> int:
    """Measure stage after stage; its rows replace older ones of the same race in the JSON."""
    for name in args.stages or QUICK:
        if args.allocator == "both":
            measured = [row for one in ALLOCATORS for row in in_a_process(name, one, args)]
        else:
            measured = measure(name, args)
        for stage in dict.fromkeys(row["stage"] for row in measured):
            print(table([row for row in measured if row["stage"] == stage]), flush=True)
        if args.output:
            old = json.loads(args.output.read_text()) if args.output.exists() else []
            races = {race_of(row) for row in measured}
            kept = [row for row in old if race_of(row) not in races]
            write_whole(args.output, json.dumps([*kept, *measured], indent=1))
    return 0


def in_a_process(name: str, allocator: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of a stage, measured in a process of its own: the allocator belongs to a process."""
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.json"
        typed = [name, "--allocator", allocator, "--output", rows, "--device", args.device]
        typed += ["--repeats", args.repeats, "--threads", args.threads]
        typed += ["--photos", args.photos] if args.photos else []
        command = [sys.executable, "-m", "scripts.benchmark", *map(str, typed)]
        status = subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode
        if status:
            raise ValueError(f"stage {name} ended with status {status}.")
        return json.loads(rows.read_text())


def measure(name: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of a stage, measured in this process."""
    if args.allocator == "fixed":
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    torch.set_num_threads(args.threads)
    rows = []
    for stage in stages(name, torch.device(args.device), args.photos):
        rows += rows_of(stage, race(stage, args.repeats), args.allocator)
    return rows


def race_of(row: dict[str, Any]) -> tuple[str, ...]:
    """What a row was measured in."""
    return row["device"], row["stage"], row["allocator"]


# Measuring


@dataclass(frozen=True, slots=True)
class Timing:
    """One contestant."""

    seconds: list[float] = field(default_factory=list)
    peak_mib: float | None = None  # above what was held before
    # Seconds of one turn by torch's operator, on a GPU by kernel; the rest it waited for the host.
    operators: dict[str, float] = field(default_factory=dict)


def race(stage: Stage, repeats: int) -> dict[str, Timing]:
    """Let every contestant warm up, measure its memory and operators, then time them in turns."""
    timings = {}
    for name, work in stage.contestants.items():
        work()
        timings[name] = Timing([], peak_of(work, stage.device), operators_of(work, stage.device))
    for _ in tqdm(range(repeats), desc=stage.name, unit="turn", leave=False, disable=not has_bar()):
        for name, work in stage.contestants.items():
            timings[name].seconds.append(seconds_of(work, stage.device))
    return timings


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """How long one turn takes, until a GPU is done."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def peak_of(work: Callable[[], object], device: torch.device) -> float | None:
    """MiB above what was held before, at most; None where the system does not tell."""
    gc.collect()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        seconds_of(work, device)
        return (torch.cuda.max_memory_allocated() - before) / MIB
    status, switch = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not switch.exists():
        return None

    def kib(name: str) -> int:
        (line,) = (line for line in status.read_text().splitlines() if line.startswith(name))
        return int(line.split()[1])

    ctypes.CDLL(None).malloc_trim(0)
    switch.write_text("5")  # the peak starts anew
    before = kib("VmRSS")
    work()
    return (kib("VmHWM") - before) / 1024


def operators_of(work: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Seconds that each of torch's operators, on a GPU each kernel, takes by itself in one turn."""
    kind = "CUDA" if device.type == "cuda" else "CPU"
    with torch.profiler.profile(
        activities=[getattr(torch.profiler.ProfilerActivity, kind)]
    ) as profiler:
        seconds_of(work, device)
    name = "self_device_time_total" if kind == "CUDA" else "self_cpu_time_total"
    seconds = {event.key: getattr(event, name) / 1e6 for event in profiler.key_averages()}
    return {name: value for name, value in seconds.items() if value > 0}


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
        x = torch.randn(2, 256, 100, 168, dtype=dtype).to(memory_format=torch.channels_last)
        conv = torch.nn.Conv2d(256, 256, 3, padding=1, bias=False, dtype=dtype)
        conv = conv.to(memory_format=torch.channels_last)
        work, flops = lambda: conv(x), 2 * conv.weight.numel() * x[:, 0].numel()
    with torch.inference_mode():
        seconds = [seconds_of(work, device) for _ in range(PEAK_TURNS)]
    return flops / statistics.median(seconds[2:])


# Rows and tables


def rows_of(stage: Stage, timings: dict[str, Timing], allocator: str) -> list[dict[str, Any]]:
    """One row for each contestant; speeds are ratios to the peer's turn in the same round."""
    (first, peer), *_ = timings.items()
    rows = []
    for name, timing in timings.items():
        seconds = statistics.median(timing.seconds)
        speeds = ratios(peer, timing)
        # torchvision in the same precision, where that is not the first contestant.
        same = name.replace("retinanet", "torchvision").replace(" compiled", "")
        rival = timings.get(same) if same not in (first, name) else None
        limit = None
        if stage.flops is not None:
            dtype = torch.bfloat16 if "bf16" in name else torch.float32
            limit = stage.flops / seconds / peak_rate(stage.device, dtype)
        total = sum(timing.operators.values())
        names = sorted(timing.operators, key=timing.operators.get, reverse=True)[:SLOWEST]
        on_gpu = stage.device.type == "cuda"
        rows.append(
            {
                "stage": stage.name,
                "allocator": allocator,
                "contestant": name,
                "seconds": seconds,
                "speed": statistics.median(speeds),
                "speed_min": min(speeds),
                "speed_max": max(speeds),
                "peak_mib": timing.peak_mib,
                "same_precision": rival and statistics.median(ratios(rival, timing)),
                "slowest": {one: timing.operators[one] / total for one in names},
                "kernel_seconds": total if on_gpu else None,
                "images_per_s": stage.images and stage.images / seconds,
                "loss_error": (stage.errors or {}).get(name),
                "share_of_limit": limit,
                "device": torch.cuda.get_device_name() if on_gpu else cpu_name(),
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
                "torchvision": torchvision.__version__,
            }
        )
    return rows


def ratios(peer: Timing, ours: Timing) -> list[float]:
    """Speeds relative to the peer's turn in the same round."""
    return [a / b for a, b in zip(peer.seconds, ours.seconds, strict=True)]


def cpu_name() -> str:
    """What the figures belong to."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [text.split(":")[1].strip() for text in lines if text.startswith("model name")]
    return (names or [platform.processor() or platform.machine()])[0]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """One stage in Markdown; what only some stages have are columns where they have it."""
    by_name: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        by_name.setdefault(row["contestant"], {})[row["allocator"]] = row
    columns = {
        "same_precision": ("in the same precision", 1, "{:.2f} x"),
        "peak_mib": ("memory", 1, "{:.0f} MiB"),
        "share_of_limit": ("of the limit", 100, "{:.2g} %"),
        "loss_error": ("loss off by", 100, "{:.2g} %"),
        "kernel_seconds": ("kernels", 1000, "{:.3g} ms"),
    }
    columns = {key: one for key, one in columns.items() if any(row[key] for row in rows)}
    allocators = {"shipped": "as shipped", "fixed": "fixed"}
    allocators = {
        key: one for key, one in allocators.items() if any(key == r["allocator"] for r in rows)
    }
    headings = ["", *(cell for one in allocators.values() for cell in (one, ""))]
    headings += [heading for heading, _, _ in columns.values()]
    stage = rows[0]["stage"]
    lines = [f"## {stage[0].upper()}{stage[1:]}", "", f"| {' | '.join(headings)} |"]
    lines.append("| --- |" + " ---: |" * (len(headings) - 1))
    for name, measured in by_name.items():
        cells = [cell for one in allocators for cell in time_and_speed(measured[one])]
        for key, (_, scale, form) in columns.items():
            # Memory as shipped; what compares arithmetic, with the fixed allocator.
            row = [*measured.values()][0 if key == "peak_mib" else -1]
            cells.append(form.format(scale * row[key]) if row[key] else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    shares = [f"{operator(one)} {100 * share:.2g} %" for one, share in row["slowest"].items()]
    return "\n".join([*lines, "", *([", ".join(shares), ""] if shares else [])])


def time_and_speed(row: dict[str, Any]) -> tuple[str, str]:
    """Two cells; the first contestant has no spread."""
    seconds = row["seconds"]
    time = f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"
    low, high = row["speed_min"], row["speed_max"]
    return time, "1" if low == high == 1 else f"**{row['speed']:.3g}** x ({low:.3g} to {high:.3g})"


def operator(name: str) -> str:
    """An operator without its library, a kernel without its template, what is compiled as that."""
    if "CompiledFxGraph" in name:
        return "compiled code"
    return f"`{name.removeprefix('aten::').split('<')[0]}`"


if __name__ == "__main__":
    sys.exit(main())
