"""Write a graph and its metadata: ONNX through torch's exporter, or torch's own format."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from retinanet.data.loader import DIVISOR
from retinanet.tools.export.graph import Graph, Heads
from retinanet.tools.predict.detector import Detector
from retinanet.weights.pretrained import RGB_MEAN, RGB_STD

if TYPE_CHECKING:
    import onnx

# What the exporter writes without converting from another one.
OPSET = 18
# The oldest with all operators that are needed, and the newest that was tried.
OPSETS = (18, 23)
NEEDED = ("onnx", "onnxruntime", "onnxscript")
# Entry of a .pt2 file that holds what the properties of an ONNX file do.
METADATA_FILE = "metadata.json"
# Height and width to trace with, pixels.
TRACED = (256, 320)
# Sides that change are multiples of DIVISOR, and in programs of torch at least this many of them:
# for a level of one row or column, P7 up to 128 px, torch.export wants a program of its own.
LEAST_SIDES = 5
# What the exporters themselves call that is about to go; nothing of ours, harmless until then:
# torchvision's shape of nms() a function that torch 2.15 has renamed, torch 2.11 its own class.
RENAMED = (
    "`create_unbacked_symint` is deprecated, please use `new_dynamic_size` instead",
    "`isinstance(treespec, LeafSpec)` is deprecated",
)
# Of the keys and values of the metadata; another number where a reader must change.
FORMAT = 1
# Rule of resizing -> how pixels are interpolated, how sides are rounded.
RESIZING = {
    "antialias": ("bilinear with antialiasing, as Pillow's, rounded to whole numbers", "half up"),
    "opencv": ("bilinear without antialiasing, as OpenCV's, rounded to whole numbers", "half up"),
    "torchvision": ("bilinear without antialiasing, not rounded", "down"),
}


class Shape(NamedTuple):
    """What is fixed in the inputs of a file; None: it may change with every call."""

    batch: int | None = None
    size: tuple[int, int] | None = None  # height and width, pixels


def check_installed() -> None:
    """Refuse before the work when a library is missing.

    Raises:
        ValueError: names what to install.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"ONNX files need {' and '.join(missing)}: pip install {' '.join(NEEDED)}. "
            f"--format pt2 does without."
        )


def least_side(kind: str, shape: Shape) -> int:
    """Pixels that padded images must have at least on each side of an ``onnx`` or ``pt2`` file."""
    return DIVISOR * (LEAST_SIDES if kind == "pt2" and shape.size is None else 1)


def image_dtype(detector: Detector) -> torch.dtype:
    """What resized pixels are: whole numbers, but where the checkpoint's rule does not round."""
    return torch.float32 if detector.settings.data.resize == "torchvision" else torch.uint8


def describe(
    detector: Detector, state: dict[str, Any], checkpoint: Path, shape: Shape, kind: str
) -> dict[str, Any]:
    """Everything that a program around the file must know: key -> plain value.

    ``state`` is what :func:`retinanet.weights.read.read_trained` reads from the file
    ``checkpoint``.
    """
    data = detector.settings.data
    return {
        "format": FORMAT,
        "task": "object detection",
        "names": list(detector.names),
        "category_ids": list(detector.category_ids),
        "thresholds": detector.thresholds,
        "preprocessing": {
            "channels": "RGB",
            "layout": "BCHW",
            "range": [0, 255],
            "dtype": str(image_dtype(detector)).removeprefix("torch."),
            "min_size": data.min_size,
            "max_size": data.max_size,
            "resize": data.resize,
            **dict(zip(("resampling", "sides_rounded"), RESIZING[data.resize], strict=True)),
            "multiple": DIVISOR,
            "least_side": least_side(kind, shape),
            "batch": shape.batch,
            "size": shape.size and list(shape.size),
            "padding": "zeros, at right and bottom",
            "normalization": "inside the file",
            "mean": list(RGB_MEAN),
            "std": list(RGB_STD),
        },
        "postprocess": dataclasses.asdict(detector.settings.postprocess),
        "source": {
            "file": checkpoint.name,
            "sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
            "origin": state.get("origin") or "retinanet",
            "step": state.get("step"),
        },
        "versions": {"torch": torch.__version__},
    }


@contextmanager
def _known_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        for message in RENAMED:
            warnings.filterwarnings("ignore", re.escape(message), FutureWarning)
        yield


def _traced(graph: Graph | Heads, shape: Shape, dtype: torch.dtype) -> torch.export.ExportedProgram:
    """The operators of a graph, for all inputs of a shape."""
    # Where their number may change, two images: 1 would be a constant.
    B = 2 if shape.batch is None else shape.batch
    H, W = shape.size or TRACED
    sizes = torch.tensor([[H, W]] * B)
    example = {
        "images": torch.zeros(B, 3, H, W, dtype=dtype),
        "sizes": sizes,
        "file_sizes": sizes.clone(),
    }
    fixed = torch.export.Dim.STATIC
    batch = torch.export.Dim("batch") if shape.batch is None else fixed
    sides: dict[int, Any] = {2: fixed, 3: fixed}
    if shape.size is None:
        rows, columns = (torch.export.Dim(n, min=LEAST_SIDES) for n in ("rows", "columns"))
        sides = {2: DIVISOR * rows, 3: DIVISOR * columns}
    axes = {"images": {0: batch, **sides}, "sizes": {0: batch}, "file_sizes": {0: batch}}
    with _known_warnings(), torch.no_grad():
        return torch.export.export(
            graph,
            tuple(example[name] for name in graph.inputs),
            dynamic_shapes={name: axes[name] for name in graph.inputs},
        )


def write_onnx(
    graph: Graph | Heads,
    path: Path,
    shape: Shape,
    dtype: torch.dtype,
    metadata: dict[str, Any],
    opset: int = OPSET,
) -> None:
    """Write one file, weights inside; ``metadata`` becomes its properties, each as JSON.

    ``dtype`` is that of the images, ``opset`` the version of ONNX's operators.
    """
    import onnx

    program = _traced(graph, shape, dtype)
    with _known_warnings():
        exported = torch.onnx.export(
            program,
            input_names=graph.inputs,
            output_names=graph.outputs,
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
    model = exported.model_proto
    _forget_the_machine(model)
    _name_axes(model, shape, "anchors" if isinstance(graph, Heads) else "detections")
    # The exporter writes a newer one, which onnxruntime before 1.18 refuses.
    model.ir_version = onnx.helper.find_min_ir_version_for(model.opset_import)
    onnx.helper.set_model_props(model, {key: json.dumps(metadata[key]) for key in metadata})
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString(deterministic=True))


def write_program(
    graph: Graph | Heads, path: Path, shape: Shape, dtype: torch.dtype, metadata: dict[str, Any]
) -> None:
    """Write what ``torch.export.load`` reads; ``metadata`` becomes the entry METADATA_FILE."""
    extra = {METADATA_FILE: json.dumps(metadata)}
    torch.export.save(_traced(graph, shape, dtype), path, extra_files=extra)


def _forget_the_machine(model: onnx.ModelProto) -> None:
    """Take out what the exporter notes of the source: lines of code, and paths of this machine."""
    graph = model.graph
    entries = [*graph.input, *graph.output, *graph.initializer]
    for part in (graph, *model.functions):
        entries += [*part.node, *part.value_info]
    for entry in entries:
        entry.doc_string = ""
    for part in (model, graph, *model.functions, *entries):
        del part.metadata_props[:]


def _name_axes(model: onnx.ModelProto, shape: Shape, counted: str) -> None:
    """Call the axes that may change by their names, where the exporter has formulas.

    ``counted``: what there may be any number of in an output.
    """
    values = [*model.graph.input, *model.graph.output]
    axes = values[0].type.tensor_type.shape.dim
    if shape.batch is None:
        old = axes[0].dim_param
        for axis in (axis for value in values for axis in value.type.tensor_type.shape.dim):
            if axis.dim_param == old:
                axis.dim_param = "batch"
    if shape.size is None:
        axes[2].dim_param, axes[3].dim_param = "height", "width"
    for value in model.graph.output:
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param and axis.dim_param != "batch":
                axis.dim_param = counted
