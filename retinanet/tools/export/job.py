"""Export: write under another name, run what was written, and only then give it its name."""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from retinanet.atomic import check_writable
from retinanet.data.loader import padded_size
from retinanet.terminal import DEFAULT_WIDTH, wrap
from retinanet.tools.export import sample_images, write
from retinanet.tools.export.compare import (
    MAX_BOX,
    MAX_SCORE,
    Outcome,
    canvas_effect,
    compare,
    open_file,
)
from retinanet.tools.export.graph import Graph, Heads
from retinanet.tools.export.sample_images import Batch
from retinanet.tools.export.write import Shape
from retinanet.tools.predict.detector import Detector, load
from retinanet.weights.read import read_trained

KINDS = ("onnx", "pt2")
ANY = Shape()
# Characters of an image's name in the table.
NAME_WIDTH = 30


def export(
    checkpoint: Path,
    output: Path,
    kind: str = "onnx",
    *,
    raw_heads: bool = False,
    shape: Shape = ANY,
    photos: Sequence[Path] = (),
    opset: int = write.OPSET,
    say: Callable[[str], object] = print,
) -> Outcome:
    """Write a file and compare it with its checkpoint.

    Args:
        checkpoint: of train.py, or of another project.
        output: the file, which must not exist.
        kind: ``"onnx"`` or ``"pt2"``.
        raw_heads: logits, deltas and anchors, no NMS.
        shape: what is fixed in its inputs.
        photos: files and folders to compare on; none: the recorded validation data.
        opset: version of ONNX's operators.
        say: takes lines for the screen.

    Returns:
        How far the two are apart; within the limits.

    Raises:
        FileNotFoundError: no such checkpoint, image or folder.
        ValueError: a request that cannot be fulfilled, or a file that detects something else; it
            is removed then.
    """
    _check(output, kind, shape, opset)
    detector = load(checkpoint, device="cpu", precision="fp32")
    with tempfile.TemporaryDirectory() as folder:
        paths, which = sample_images.choose(photos, detector, Path(folder))
        inputs = sample_images.batches(paths, detector, shape, write.least_side(kind, shape))
    say(f"read       {checkpoint}: {detector.model.num_classes} classes")
    say("\n".join(wrap(f"compare    {which}", DEFAULT_WIDTH)))

    metadata = write.describe(detector, read_trained(checkpoint), checkpoint, shape, kind)
    graph = Heads(detector.model) if raw_heads else Graph(detector.model, detector.postprocess)
    dtype = write.image_dtype(detector)
    # torch.export warns of other suffixes.
    partial = output.with_name(f"{output.name}.{os.getpid()}.partial.{kind}")
    try:
        if kind == "onnx":
            write.write_onnx(graph.eval(), partial, shape, dtype, metadata, opset)
        else:
            write.write_program(graph.eval(), partial, shape, dtype, metadata)
        outcome = compare(detector, open_file(partial, kind), inputs, raw_heads=raw_heads)
        for line in table(outcome, raw_heads=raw_heads):
            say(line)
        wrong = [d for d in outcome.differences if not d.is_same]
        if wrong:
            raise ValueError(
                f"the {kind} file does not detect what {checkpoint} detects, in {len(wrong)} of "
                f"{len(outcome.differences)} images: boxes differ by up to "
                f"{max(d.box for d in wrong):.3g} px (allowed {MAX_BOX}), scores by "
                f"{max(d.score for d in wrong):.3g} (allowed {MAX_SCORE:g}), "
                f"{sum(d.unmatched for d in wrong)} detections have no partner. It was removed."
            )
        for line in summary(outcome, kind):
            say(line)
        if shape.size is not None and not raw_heads:
            say("\n".join(wrap(describe_canvas(detector, inputs, shape.size), DEFAULT_WIDTH)))
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)
    return outcome


def _check(output: Path, kind: str, shape: Shape, opset: int) -> None:
    """Refuse what cannot be done, before the work."""
    low, high = write.OPSETS
    if kind not in KINDS:
        raise ValueError(f"a format must be one of {', '.join(KINDS)}, got {kind!r}.")
    if not low <= opset <= high:
        raise ValueError(f"--opset must lie in [{low}, {high}], got {opset}.")
    if shape.batch is not None and shape.batch < 1:
        raise ValueError(f"--batch must be at least 1, got {shape.batch}.")
    if any(side < 1 or side % write.DIVISOR for side in shape.size or ()):
        height, width = shape.size
        raise ValueError(
            f"--size must be two multiples of {write.DIVISOR}, got {height}x{width}; choose "
            f"{'x'.join(map(str, padded_size(np.array(shape.size))))}."
        )
    if output.suffix.lower() != f".{kind}":
        raise ValueError(
            f"--output {output} would hold {kind}: its name must end in .{kind}. Engines of "
            f"TensorRT and the like are built from the .onnx file."
        )
    if output.exists():
        raise ValueError(f"{output} already exists; remove it or choose another --output.")
    if not output.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {output.parent}; make it first.")
    check_writable(output.parent, "--output")
    if kind == "onnx":
        write.check_installed()


def describe_canvas(detector: Detector, inputs: Sequence[Batch], size: tuple[int, int]) -> str:
    """How far scores on a fixed size are from those of ``load``, which pads no more than needed."""
    mean, largest, alone = canvas_effect(detector, inputs)
    lost = f", {alone} detections have no partner" if alone else ""
    fix = " Leave out --size, or choose that of your images." if largest > MAX_SCORE else ""
    return (
        f"canvas     with --size {size[0]}x{size[1]} scores differ from those of load(checkpoint) "
        f"by {mean:.2g} in the mean, {largest:.2g} at most{lost}: norms and borders see the "
        f"padding.{fix}"
    )


def table(outcome: Outcome, *, raw_heads: bool) -> list[str]:
    """A line for each image, below what its columns are."""
    counted = "anchors" if raw_heads else "detections"
    header = f"{'image':<{NAME_WIDTH}} {'size':>11} {'batch':>5} {counted:>10} {'box px':>7}"
    lines = ["", f"{header} {'score':>7} ties"]
    for d in outcome.differences:
        name = d.name if len(d.name) <= NAME_WIDTH else f"...{d.name[3 - NAME_WIDTH :]}"
        size = f"{d.size[0]} x {d.size[1]}"
        lines.append(
            f"{name:<{NAME_WIDTH}} {size:>11} {d.batch:>5} {d.detections:>10} {d.box:>7.1g} "
            f"{d.score:>7.1g} {d.ties:>4}"
        )
        if d.unmatched:
            lines.append(f"{'':<{NAME_WIDTH}} {d.unmatched} without a partner")
    return [*lines, ""]


def summary(outcome: Outcome, kind: str) -> list[str]:
    """How near the two are, and how fast: seconds of both, and the median ratio of the turns."""
    differences = outcome.differences
    num_compared = sum(d.detections for d in differences)
    who = "onnxruntime" if kind == "onnx" else "the program"
    box, score = max(d.box for d in differences), max(d.score for d in differences)
    ours, theirs = (statistics.median(part) for part in zip(*outcome.seconds, strict=True))
    ratios = [a / b for a, b in outcome.seconds]
    lines = [
        f"same       {num_compared} in {len(differences)} images: boxes within {box:.2g} px, "
        f"scores {score:.1g}; ties {sum(d.ties for d in differences)}",
        f"speed      torch {ours:.3g} s, {who} {theirs:.3g} s a batch: "
        f"{statistics.median(ratios):.2f} x ({min(ratios):.2f} to {max(ratios):.2f})",
    ]
    if not num_compared:
        lines.append(
            "note       nothing was detected in any image, so little was compared: give images of "
            "objects"
        )
    return lines
