"""Plots of a data set before training: sizes of boxes under the anchors, boxes of every class."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from retinanet.data.coco import CocoData, class_counts
from retinanet.model.anchors import AnchorGenerator
from retinanet.tools.anchor_coverage import Objects, best_overlaps
from retinanet.tools.report.style import (
    BLACK,
    COLORS,
    GRAY,
    drawable_names,
    house_style,
    plain_text,
    save_png,
)

# Boxes drawn as points; of more, evenly spread ones.
DRAWN_BOXES = 20_000
# Classes with a bar; of more the most frequent and the rarest.
MAX_BARS = 100
NAME_LETTERS = 28
# Above this ratio of the largest to the smallest count bars are on a logarithmic axis.
LOG_RATIO = 50
TICKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)


@house_style()
def plot_box_sizes(
    objects: Objects, generator: AnchorGenerator, positive_iou: float, min_size: int, out: Path
) -> None:
    """Width and height of each box with the anchors over them, and how well these fit.

    Args:
        objects: of the set, at the training size.
        generator: makes the anchors.
        positive_iou: what an anchor needs.
        min_size: shorter side of resized images, pixels, for the title.
        out: PNG to write.
    """
    objects = objects.spread(DRAWN_BOXES)
    best = best_overlaps(objects, generator).numpy()
    figure = Figure(figsize=(10, 5.2), layout="constrained")
    plane, fit = figure.subplots(1, 2, width_ratios=(3, 2))
    plane.set_title(f"Training boxes at a shorter side of {min_size} px")
    sides = (objects.boxes[:, 2:] - objects.boxes[:, :2]).clamp(min=0.5).numpy()
    size = float(np.clip(2e4 / max(len(sides), 1), 2, 14))
    uncovered = best < positive_iou
    share = 100 * uncovered.mean() if len(uncovered) else 0
    groups = (
        (~uncovered, COLORS[0], f"{100 - share:.1f} %: an anchor of IoU {positive_iou:g} or more"),
        (uncovered, COLORS[1], f"{share:.1f} %: none"),
    )
    for chosen, color, label in groups:
        plane.scatter(*sides[chosen].T, s=size, c=color, alpha=0.45, linewidths=0, label=label)
    shapes = torch.cat([generator.cell_anchors(size) for size in generator.sizes])
    anchors = (shapes[:, 2:] - shapes[:, :2]).numpy()
    label = f"{len(anchors)} anchor shapes"
    plane.scatter(*anchors.T, s=34, c=BLACK, marker="+", linewidths=1.1, label=label)
    low = max(min(sides.min(initial=8), anchors.min()) / 1.3, 0.5)
    high = max(sides.max(initial=8), anchors.max()) * 1.3
    plane.set_xscale("log", base=2)
    plane.set_yscale("log", base=2)
    for axis in (plane.xaxis, plane.yaxis):
        axis.set_ticks([tick for tick in TICKS if low <= tick <= high])
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())
    plane.set(xlim=(low, high), ylim=(low, high), xlabel="width, px", ylabel="height, px")
    plane.set_aspect("equal")
    legend = plane.legend(loc="upper left", fontsize=8, frameon=True, edgecolor="none")
    for handle in legend.legend_handles[:2]:
        handle.set_alpha(1)
        handle.set_sizes([24])
    fit.set_title("Overlap with the best anchor")
    fit.hist(best, bins=np.linspace(0, 1, 41), color=COLORS[0])
    fit.axvline(positive_iou, color=COLORS[1], linewidth=1.4)
    fit.set(xlim=(0, 1), xlabel="IoU", ylabel="boxes")
    save_png(figure, out)


@house_style()
def plot_classes(splits: Mapping[str, CocoData], out: Path) -> None:
    """Boxes of every class, the most frequent on top; the splits beside each other.

    Args:
        splits: name -> split; the first one gives the order.
        out: PNG to write.
    """
    counts = {
        split: dict(zip(data.category_names, class_counts(data), strict=True))
        for split, data in splits.items()
    }
    first = next(iter(splits))
    ids = dict(zip(splits[first].category_names, splits[first].category_ids, strict=True))
    ranked = sorted(ids, key=lambda name: -counts[first][name])
    hidden = max(len(ranked) - MAX_BARS, 0)
    if hidden:
        ranked = ranked[: MAX_BARS // 2] + ranked[-(MAX_BARS // 2) :]
    names = drawable_names(ranked, [ids[name] for name in ranked])
    figure = Figure(figsize=(8, 1.2 + 0.22 * max(len(ranked), 3)), layout="constrained")
    axes = figure.subplots()
    more = f", {hidden} in the middle left out" if hidden else ""
    axes.set_title(f"Boxes of {len(ids)} classes{more}")
    values = [row.get(name, 0) for row in counts.values() for name in ranked]
    most, least = max(values, default=0), min((v for v in values if v), default=1)
    if most > LOG_RATIO * least:
        axes.set_xscale("log")
        axes.set_xlim(0.7, most * 2.2)
        axes.xaxis.set_major_formatter("{x:g}")
    else:
        axes.set_xlim(0, max(most * 1.12, 1))
    height = 0.8 / len(counts)
    for number, (split, row) in enumerate(counts.items()):
        y = np.arange(len(ranked)) + (number - (len(counts) - 1) / 2) * height
        color = COLORS[0] if number == 0 else GRAY
        shown = [row.get(name, 0) for name in ranked]
        bars = axes.barh(y, shown, height=height, color=color, label=split)
        axes.bar_label(bars, padding=2, fontsize=6.5 if len(counts) > 1 else 8, color=BLACK)
    axes.set_yticks(range(len(ranked)), [plain_text(name, NAME_LETTERS) for name in names])
    axes.set_ylim(len(ranked) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.legend(loc="lower right", frameon=True, framealpha=0.9, edgecolor="none")
    save_png(figure, out)
