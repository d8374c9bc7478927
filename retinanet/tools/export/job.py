"""Export: write beside the place, run what was written, and only then give it its name."""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retinanet.data.loader import padded_size
from retinanet.terminal import DEFAULT_WIDTH, wrap
from retinanet.tools.export import sample_images as photos
from retinanet.tools.export import write
from retinanet.tools.export.compare import MAX_BOX, MAX_SCORE, Outcome, compare
from retinanet.tools.export.describe import describe, image_dtype
from retinanet.tools.export.graph import Graph, Heads
from retinanet.tools.export.running import open_file
from retinanet.tools.predict.detector import Detector, load
from retinanet.weights.read import read_trained

KINDS = ("onnx", "pt2")


@dataclass(frozen=True, slots=True)
class Request:
    """One file that is wanted."""

    checkpoint: Path
    output: Path  # must not exist
    kind: str = "onnx"  # or "pt2"
    raw_heads: bool = False
    shape: write.Shape = write.Shape()
    photos: tuple[Path, ...] = ()  # files and folders; none: the recorded validation data
    opset: int = write.OPSET  # of ONNX


def export(wanted: Request, say: Callable[[str], object]) -> Outcome:
    """Write the file and compare it with its checkpoint.

    Args:
        wanted: what to write.
        say: takes lines for the screen.

    Returns:
        How far the two are apart; within the limits.

    Raises:
        FileNotFoundError: no such checkpoint or photo.
        ValueError: a request that cannot be fulfilled, or a file that detects something else; it
            is removed then.
    """
    check(wanted)
    detector = load(wanted.checkpoint, device="cpu", precision="fp32")
    with tempfile.TemporaryDirectory() as folder:
        chosen, which = photos.choose(wanted.photos, detector, Path(folder))
        least = write.least_side(wanted.kind, wanted.shape)
        inputs = photos.batches(chosen, detector, wanted.shape, least)
    say(f"read       {wanted.checkpoint}: {detector.model.num_classes} classes")
    say("\n".join(wrap(f"compare    {which}", DEFAULT_WIDTH)))
    partial = wanted.output.with_name(f"{wanted.output.name}.{os.getpid()}.partial")
    try:
        _write(wanted, detector, partial, least)
        run = open_file(partial, wanted.kind)
        outcome = compare(detector, run, inputs, raw_heads=wanted.raw_heads)
        for line in table(outcome, raw_heads=wanted.raw_heads):
            say(line)
        if not outcome.is_same:
            raise ValueError(failure(wanted, outcome))
        for line in summary(outcome, wanted.kind):
            say(line)
        partial.replace(wanted.output)
    finally:
        partial.unlink(missing_ok=True)
    return outcome


def check(wanted: Request) -> None:
    """Refuse what cannot be done, before the work.

    Raises:
        FileNotFoundError: the folder to write to does not exist.
        ValueError: a value out of range, a file in the way, or a library that is missing.
    """
    low, high = write.OPSETS
    if wanted.kind not in KINDS:
        raise ValueError(f"a format must be one of {', '.join(KINDS)}, got {wanted.kind!r}.")
    if not low <= wanted.opset <= high:
        raise ValueError(f"--opset must lie in [{low}, {high}], got {wanted.opset}.")
    if wanted.shape.batch is not None and wanted.shape.batch < 1:
        raise ValueError(f"--batch must be at least 1, got {wanted.shape.batch}.")
    if any(side < 1 or side % write.DIVISOR for side in wanted.shape.size or ()):
        height, width = wanted.shape.size
        raise ValueError(
            f"--size must be two multiples of {write.DIVISOR}, got {height}x{width}; choose "
            f"{'x'.join(map(str, padded_size(np.array(wanted.shape.size))))}."
        )
    if wanted.output.exists():
        raise ValueError(f"{wanted.output} already exists; remove it or choose another --output.")
    if not wanted.output.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {wanted.output.parent}; make it first.")
    if wanted.kind == "onnx":
        write.check_installed()


def _write(wanted: Request, detector: Detector, path: Path, least_side: int) -> None:
    state = read_trained(wanted.checkpoint)
    metadata = describe(detector, state, wanted.checkpoint, wanted.shape, least_side)
    heads = wanted.raw_heads
    graph = Heads(detector.model) if heads else Graph(detector.model, detector.postprocess)
    what = graph.eval(), path, wanted.shape, image_dtype(detector), metadata
    if wanted.kind == "onnx":
        write.write_onnx(*what, wanted.opset)
    else:
        write.write_program(*what)


def table(outcome: Outcome, *, raw_heads: bool = False) -> list[str]:
    """A line for each image, and what its columns are."""
    counted = "anchors" if raw_heads else "found"
    lines = [
        "",
        f"{'photo':<30} {'size':>11} {'batch':>5} {counted:>7} {'box px':>8} {'score':>8} "
        f"{'ties':>4}",
    ]
    for d in outcome.differences:
        name = d.name if len(d.name) <= 30 else f"...{d.name[-27:]}"
        size = f"{d.size[0]} x {d.size[1]}"
        lines.append(
            f"{name:<30} {size:>11} {d.batch:>5} {d.detections:>7} {d.box:>8.1g} {d.score:>8.1g} "
            f"{d.ties:>4}"
        )
        if d.unmatched:
            lines.append(f"{'':<30} {d.unmatched} without a partner")
    return [*lines, ""]


def failure(wanted: Request, outcome: Outcome) -> str:
    """Why the file may not exist."""
    wrong = [d for d in outcome.differences if not d.is_same]
    return (
        f"the {wanted.kind} file does not detect what {wanted.checkpoint} detects, in "
        f"{len(wrong)} of {len(outcome.differences)} images: boxes differ by up to "
        f"{max(d.box for d in wrong):.3g} px (allowed {MAX_BOX}), scores by "
        f"{max(d.score for d in wrong):.3g} (allowed {MAX_SCORE:g}), "
        f"{sum(d.unmatched for d in wrong)} detections have no partner. It was removed."
    )


def summary(outcome: Outcome, kind: str) -> list[str]:
    """How near the two are, and how fast: seconds of both, and the median ratio of the turns."""
    differences = outcome.differences
    found = sum(d.detections for d in differences)
    who = "onnxruntime" if kind == "onnx" else "the program"
    box, score = max(d.box for d in differences), max(d.score for d in differences)
    ours, theirs = (statistics.median(part) for part in zip(*outcome.seconds, strict=True))
    ratios = [a / b for a, b in outcome.seconds]
    lines = [
        f"same       {found} in {len(differences)} images: boxes within {box:.2g} px, scores "
        f"{score:.1g}; ties {sum(d.ties for d in differences)}",
        f"speed      torch {ours:.3g} s, {who} {theirs:.3g} s a batch: "
        f"{statistics.median(ratios):.2f} x ({min(ratios):.2f} to {max(ratios):.2f})",
    ]
    if not found:
        lines.append(
            "note       nothing was found in any image, so little was compared: give photos of "
            "objects"
        )
    return lines
