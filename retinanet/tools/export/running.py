"""Written files, read back and run as those will who get them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision  # noqa: F401 - nms, for programs
from torch import Tensor

# From inputs in the order of the graph's to outputs.
Run = Callable[..., list[Tensor]]
# onnxruntime's number for errors alone: it warns of every constant that it folds away.
ERRORS_ALONE = 3
# torch 2.11 makes the weights of a program from bytes that may not be written, and warns of itself.
FROM_BYTES = "The given buffer is not writable"


def open_file(path: Path, kind: str) -> Run:
    """What computes a file's outputs, on the CPU with as many threads as torch has.

    Args:
        path: of the file.
        kind: ``"onnx"`` or ``"pt2"``.

    Raises:
        ValueError: onnxruntime cannot read or run the file.
    """
    return _open_onnx(path) if kind == "onnx" else _open_program(path)


def _open_onnx(path: Path) -> Run:
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    refusals = (errors.Fail, errors.InvalidArgument, errors.InvalidGraph, errors.NotImplemented)
    refusals += (errors.RuntimeException, errors.InvalidProtobuf)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS_ALONE
    # A fair race: it would take all cores, whatever torch was told.
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
    except refusals as error:
        raise ValueError(f"onnxruntime cannot read the file: {error}") from error

    names = [value.name for value in session.get_inputs()]

    def run(*inputs: Tensor) -> list[Tensor]:
        fed = dict(zip(names, (value.numpy() for value in inputs), strict=True))
        try:
            return [torch.from_numpy(output) for output in session.run(None, fed)]
        except refusals as error:
            raise ValueError(f"onnxruntime cannot run the file: {error}") from error

    return run


def _open_program(path: Path) -> Run:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", FROM_BYTES, UserWarning)
        module = torch.export.load(path).module()

    @torch.no_grad()
    def run(*inputs: Tensor) -> list[Tensor]:
        return list(module(*inputs))

    return run
