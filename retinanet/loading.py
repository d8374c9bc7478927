"""Files of tensors from anywhere, read so that nothing in them runs and nothing slips through."""

from __future__ import annotations

import io
import pickle
import struct
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

# What torch.load and zipfile raise on damaged or foreign bytes, found by flipping bits.
UNREADABLE = (
    pickle.UnpicklingError,
    struct.error,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
)


# What torchvision's references and mmengine keep beside the weights: options and logs. Read as
# empty objects.
NOT_WANTED = (
    "argparse.Namespace",
    "mmengine.logging.history_buffer.HistoryBuffer",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy.dtype",
    "numpy.dtypes.Float64DType",
    "numpy.dtypes.Int64DType",
    "numpy.ndarray",
)


class LeftOut:
    """Stands where a file has an object that is not wanted; takes anything, does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> LeftOut:
        """An empty object, whatever it is made of."""
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        """Forget ``state``."""


def read_tensors(path: Path) -> Any:
    """Containers and tensors of a file, on the CPU.

    Args:
        path: written by ``torch.save``, today's format or the one before; or, where it ends in
            ``.pkl``, a pickle of numpy arrays, as detectron2's models are.

    Raises:
        ValueError: not such a file, or it holds more than containers and tensors.
    """
    try:
        if path.suffix == ".pkl":
            return _tensors(_ArrayUnpickler(io.BytesIO(path.read_bytes())).load())
        stand_ins = [(LeftOut, name) for name in NOT_WANTED]
        with warnings.catch_warnings(), torch.serialization.safe_globals(stand_ins):
            # Foreign bytes make the unpickler warn of what it is about to refuse.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError:
        raise
    except UNREADABLE as error:
        if isinstance(error, pickle.UnpicklingError):  # torch's own words advise to trust the file
            raise ValueError("no file of tensors and plain containers alone") from error
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(f"{type(error).__name__}: {reason}") from error


def _latin1(text: str, encoding: str) -> bytes:
    """How pickles of Python 2 carry bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in {encoding}")
    return text.encode("latin1")


class _ArrayUnpickler(pickle.Unpickler):
    """Knows how to make numpy arrays and plain containers, and nothing else."""

    ALLOWED: dict[tuple[str, str], Callable] = {
        ("_codecs", "encode"): _latin1,
        ("collections", "OrderedDict"): OrderedDict,
        ("numpy", "dtype"): np.dtype,
        ("numpy", "ndarray"): np.ndarray,
    }
    # Numpy 2 and numpy 1 have them in modules of different names.
    for core in ("numpy._core", "numpy.core"):
        ALLOWED[f"{core}.multiarray", "_reconstruct"] = np.zeros(0).__reduce__()[0]
        ALLOWED[f"{core}.multiarray", "scalar"] = np.float32(0).__reduce__()[0]
        ALLOWED[f"{core}.numeric", "_frombuffer"] = np.zeros(0).__reduce_ex__(5)[0]

    def __init__(self, file: io.BytesIO) -> None:
        """Read pickles of Python 2 too."""
        super().__init__(file, encoding="latin1")

    def find_class(self, module: str, name: str) -> Callable:
        """One of the few; everything else is refused before it is imported."""
        try:
            return self.ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name}") from None


def _tensors(value: Any) -> Any:
    """The same containers with tensors instead of arrays; what is no number stays as it is."""
    if isinstance(value, dict):
        return {key: _tensors(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_tensors(item) for item in value]
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biuf":
        return torch.from_numpy(np.array(value))
    return value
