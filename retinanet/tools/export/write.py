"""Graphs into files: ONNX through torch's exporter, or torch's own format."""

from __future__ import annotations

import importlib.util
import json
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from retinanet.data.loader import DIVISOR
from retinanet.tools.export.graph import Graph, Heads

if TYPE_CHECKING:
    import onnx

# What the exporter writes without converting from another one.
OPSET = 18
# The oldest with all operators that are needed, and the newest that was tried.
OPSETS = (18, 23)
NEEDED = ("onnx", "onnxruntime", "onnxscript")
INPUTS = ("images", "sizes", "file_sizes")
OUTPUTS = {Graph: ("boxes", "scores", "labels", "count"), Heads: ("logits", "deltas", "anchors")}
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


def write_onnx(
    graph: Graph | Heads,
    path: Path,
    shape: Shape,
    dtype: torch.dtype,
    metadata: dict[str, Any],
    opset: int = OPSET,
) -> None:
    """Write one file, weights inside.

    Args:
        graph: to write.
        path: replaced if it exists.
        shape: what is fixed.
        dtype: of the images.
        metadata: becomes the file's properties, each as JSON.
        opset: version of ONNX's operators.

    Raises:
        ValueError: the exporter cannot write that opset.
    """
    import onnx

    program = traced(graph, shape, dtype)
    names = {"input_names": _inputs(graph), "output_names": OUTPUTS[type(graph)]}
    with _known_warnings():
        exported = torch.onnx.export(
            program, **names, opset_version=opset, dynamo=True, verbose=False
        )
    model = exported.model_proto
    _forget_the_machine(model)
    _name_axes(model, shape)
    onnx.helper.set_model_props(model, {key: json.dumps(metadata[key]) for key in metadata})
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString(deterministic=True))


def write_program(
    graph: Graph | Heads, path: Path, shape: Shape, dtype: torch.dtype, metadata: dict[str, Any]
) -> None:
    """Write what ``torch.export.load`` reads; ``nms`` needs torchvision to be imported.

    Args:
        graph: to write.
        path: replaced if it exists.
        shape: what is fixed.
        dtype: of the images.
        metadata: becomes the extra file ``metadata.json``.
    """
    extra = {METADATA_FILE: json.dumps(metadata)}
    torch.export.save(traced(graph, shape, dtype), path, extra_files=extra)


def traced(graph: Graph | Heads, shape: Shape, dtype: torch.dtype) -> torch.export.ExportedProgram:
    """The operators of a graph, for all inputs of a shape."""
    example = _example(graph, shape, dtype)
    fixed = torch.export.Dim.STATIC
    batch = torch.export.Dim("batch") if shape.batch is None else fixed
    sides: dict[int, Any] = {2: fixed, 3: fixed}
    if shape.size is None:
        rows, columns = (torch.export.Dim(n, min=LEAST_SIDES) for n in ("rows", "columns"))
        sides = {2: DIVISOR * rows, 3: DIVISOR * columns}
    axes = {"images": {0: batch, **sides}, "sizes": {0: batch}, "file_sizes": {0: batch}}
    with _known_warnings(), torch.no_grad():
        return torch.export.export(
            graph, example, dynamic_shapes={name: axes[name] for name in _inputs(graph)}
        )


def least_side(kind: str, shape: Shape) -> int:
    """Pixels that padded images must have at least on each side.

    Args:
        kind: ``"onnx"`` or ``"pt2"``.
        shape: what is fixed.
    """
    return DIVISOR * (LEAST_SIDES if kind == "pt2" and shape.size is None else 1)


def _inputs(graph: nn.Module) -> Sequence[str]:
    return INPUTS if isinstance(graph, Graph) else INPUTS[:2]


def _example(graph: nn.Module, shape: Shape, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Inputs to trace with; two images where their number may change, as 1 is a constant."""
    B = 2 if shape.batch is None else shape.batch
    H, W = shape.size or TRACED
    sizes = torch.tensor([[H, W]] * B)
    example = (torch.zeros(B, 3, H, W, dtype=dtype), sizes, sizes.clone())
    return example[: len(_inputs(graph))]


@contextmanager
def _known_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        for message in RENAMED:
            warnings.filterwarnings("ignore", re.escape(message), FutureWarning)
        yield


def _forget_the_machine(model: onnx.ModelProto) -> None:
    """Take out what the exporter notes of the source: lines of code, and paths of this machine."""
    for part in (model.graph, *model.functions):
        del part.metadata_props[:]
        for thing in (*part.node, *part.value_info):
            del thing.metadata_props[:]
            thing.doc_string = ""
    for thing in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        del thing.metadata_props[:]
        thing.doc_string = ""
    del model.metadata_props[:]


def _name_axes(model: onnx.ModelProto, shape: Shape) -> None:
    """Call the axes that may change by their names, where the exporter has formulas."""
    first, *others = model.graph.input
    axes = first.type.tensor_type.shape.dim
    if shape.batch is None:
        old = axes[0].dim_param
        for thing in (first, *others, *model.graph.output):
            for axis in thing.type.tensor_type.shape.dim:
                if axis.dim_param == old:
                    axis.dim_param = "batch"
    if shape.size is None:
        axes[2].dim_param, axes[3].dim_param = "height", "width"
