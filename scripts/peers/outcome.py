"""What a comparison leaves: table, JSON, CSV and a plot of AP."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import torchvision
from matplotlib.figure import Figure

from retinanet.atomic import write_whole
from retinanet.csv_text import csv_text
from retinanet.tools.report.style import COLORS, house_style, save_png

Rows = list[dict[str, Any]]
COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def machine() -> str:
    """Where the numbers come from."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (
        f"{platform.machine()}, {cores} cores{gpu}, {torch.get_num_threads()} threads, "
        f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"torchvision {torchvision.__version__}"
    )


def write(folder: Path, contest: dict[str, Any], rows: Rows) -> None:
    """``results.json``, ``results.csv`` and ``ap.png``, made anew from all rows there are.

    Args:
        folder: exists.
        contest: what was compared, as plain containers.
        rows: one for each evaluation.
    """
    text = json.dumps({"machine": machine(), **contest, "rows": rows}, indent=2)
    write_whole(folder / "results.json", text + "\n")
    write_whole(folder / "results.csv", csv_text(rows[0], [row.values() for row in rows]))
    plot(folder / "ap.png", contest["unit"], rows)


def last_rows(rows: Rows) -> Rows:
    """The last evaluation of every training."""
    return list({(row["seed"], row["peer"]): row for row in rows}.values())


def table(rows: Rows) -> list[str]:
    """Lines: every training, then the means over seeds and their difference."""
    last = last_rows(rows)
    head = f"{'peer':<12} {'seed':>4} {'steps':>6} {'s/step':>7}"
    lines = [head + "".join(f"{name:>7}" for name in COLUMNS)]
    for row in last:
        start = f"{row['peer']:<12} {row['seed']:>4} {row['step']:>6}"
        start += f" {row['seconds_per_step']:>7.2f}"
        lines.append(start + "".join(f"{_figure(row[name]):>7}" for name in COLUMNS))
    return [*lines, "", *verdict(last)]


def verdict(last: Rows) -> list[str]:
    """Mean AP of each peer over the seeds that both have, and what the difference is worth."""
    AP: dict[str, dict[int, float]] = {}
    for row in last:
        if row["AP"] is not None:
            AP.setdefault(row["peer"], {})[row["seed"]] = row["AP"]
    if len(AP) < 2:
        return []
    (first, ours), (second, theirs) = AP.items()
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return []
    a, b = mean(ours[seed] for seed in seeds), mean(theirs[seed] for seed in seeds)
    line = f"mean AP over {len(seeds)} seed(s): {first} {a:.4f}, {second} {b:.4f}: {a - b:+.4f}"
    if len(seeds) == 1:
        return [line, "One seed each: a small difference may be chance."]
    spread = max(
        max(peer[seed] for seed in seeds) - min(peer[seed] for seed in seeds)
        for peer in (ours, theirs)
    )
    return [
        line,
        f"Seeds of one peer lie up to {spread:.4f} apart; a difference of that size may be chance.",
    ]


def plot(path: Path, unit: str, rows: Rows) -> None:
    """AP over steps or minutes, one line for each training."""
    peers = list(dict.fromkeys(row["peer"] for row in rows))
    with house_style():
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        axes = figure.subplots()
        for seed, peer in sorted({(row["seed"], row["peer"]) for row in rows}):
            mine = [
                row
                for row in rows
                if (row["seed"], row["peer"]) == (seed, peer) and row["AP"] is not None
            ]
            first = seed == min(row["seed"] for row in rows if row["peer"] == peer)
            axes.plot(
                [0, *(row["step"] if unit == "steps" else row["seconds"] / 60 for row in mine)],
                [0, *(row["AP"] for row in mine)],
                color=COLORS[peers.index(peer) % len(COLORS)],
                marker="o",
                markersize=4,
                label=peer if first else None,
            )
        axes.set_xlabel("steps" if unit == "steps" else "minutes of training")
        axes.set_ylabel("AP (COCO, 0.50 to 0.95)")
        axes.set_title("Equal steps" if unit == "steps" else "Equal time")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.legend(loc="upper left")
        save_png(figure, path)


def _figure(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"
