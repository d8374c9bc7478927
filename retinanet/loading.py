"""Files of tensors from anywhere, read so that nothing in them runs and nothing slips through."""

from __future__ import annotations

import pickle
import struct
import warnings
from pathlib import Path
from typing import Any

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


def read_tensors(path: Path) -> Any:
    """Containers and tensors of a file, on the CPU.

    Args:
        path: written by ``torch.save``, today's format or the one before.

    Raises:
        ValueError: not such a file, or it holds more than containers and tensors.
    """
    try:
        with warnings.catch_warnings():
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
