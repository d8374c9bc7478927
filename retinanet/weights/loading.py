"""Load tensor files safely: no code runs, checksums are verified, claimed sizes are checked."""

from __future__ import annotations

import math
import pickle
import pickletools
import re
import struct
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

# What torch.load, pickle and zipfile raise on damaged or crafted bytes, found by flipping bits.
UNREADABLE = (
    *(pickle.UnpicklingError, struct.error, zipfile.BadZipFile, OSError, EOFError, MemoryError),
    *(AssertionError, AttributeError, LookupError, OverflowError, RuntimeError, TypeError),
    ValueError,
)
# What torchvision's references and mmengine keep beside the weights: options and logs. They are
# read as empty objects.
NOT_WANTED = (
    "argparse.Namespace",
    "builtins.getattr",
    "mmengine.logging.history_buffer.HistoryBuffer",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy.dtype",
    "numpy.ndarray",
)
# How files of torch.save begin: a zip file's first entry, and before torch 1.6 a pickled number.
# Torch tells them apart in the same way. Only the first has checksums.
TORCH_ZIP = b"PK\x03\x04"
TORCH_OLD = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)

CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class StandIn:
    """Stands for an object of a file that is not made: keeps what it would be made of.

    A class with ``__setstate__`` rather than a function: a pickle may set attributes of what it
    names, but not of these.
    """

    def __init__(self, *parts: Any, **_: Any) -> None:
        self.parts = parts
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


def read_tensors(path: Path) -> Any:
    """Containers and tensors of a file, on the CPU.

    Args:
        path: written by ``torch.save``, today's format or the one before, or a pickle of numpy
            arrays, as detectron2's models are. Its first bytes decide, not its name.

    Raises:
        PermissionError: it may not be read.
        ValueError: not such a file, damaged, or it holds more than containers and tensors.
    """
    try:
        contents = [_read(path)]
        _check_and_convert(contents, path.stat().st_size)
        return contents[0]
    except PermissionError:
        raise
    except pickle.UnpicklingError as error:
        # Torch's own words advise to trust the file; what was refused is enough.
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        wants = f", it wants {refused[1]}" if refused else ""
        raise ValueError(f"no file of tensors and plain containers alone{wants}") from error
    except UNREADABLE as error:
        reason = (str(error).splitlines() or [""])[0]
        kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
        raise ValueError(f"{kind}{reason}") from error


def _read(path: Path) -> Any:
    with path.open("rb") as file:
        length, brace = int.from_bytes(file.read(8), "little"), file.read(1)
        if brace == b"{" and length < path.stat().st_size:
            made = f"torch.save(safetensors.torch.load_file({path.name!r}), 'weights.pth')"
            raise ValueError(f"a safetensors file; make one that is read of it: {made}")
        file.seek(0)
        head = file.read(len(TORCH_OLD))
        if not head.startswith((TORCH_ZIP, TORCH_OLD)):
            file.seek(0)
            _check_opcodes(file, path.stat().st_size)
            file.seek(0)
            return ArrayUnpickler(file, encoding="latin1").load()  # Python 2's pickles too
    if head.startswith(TORCH_ZIP):
        # Torch does not look at the checksums: a flipped bit would load silently.
        with zipfile.ZipFile(path) as archive:
            # It compresses nothing: another method is a flipped bit, or somebody else's file.
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError("its entries are compressed")
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"wrong checksum of {damaged}")
    left_out = [(StandIn, name) for name in NOT_WANTED]
    with warnings.catch_warnings(), torch.serialization.safe_globals(left_out):
        # Foreign bytes make the unpickler warn of what it is about to refuse.
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=True)


def _check_opcodes(file: Any, size: int) -> None:
    """Refuse what pickle would do without asking ``find_class``, or before reading any bytes."""
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name.startswith("EXT"):  # an object that was registered under a number
            raise pickle.UnpicklingError(f"extension {argument}")
        if opcode.name.endswith("PUT") and argument > size:  # room for that many objects
            raise pickle.UnpicklingError(f"object number {argument} in {size} bytes")


# Numpy's own objects would let a file say that its bytes are pointers.
class Dtype(StandIn):
    """``dtype(code, ...)``; the second of its state is the byte order."""


class Bytes(StandIn):
    """``encode(text, "latin1")``: bytes as pickles of protocol 2 carry them."""


class Array(StandIn):
    """An array, whose state is (version, shape, dtype, Fortran's order or not, bytes)."""


class Scalar(Array):
    """``scalar(dtype, bytes)``: one number."""


class FromBuffer(Array):
    """``_frombuffer(bytes, dtype, shape, order)``: an array as protocol 5 carries it."""


def _to_tensor(array: Array) -> Tensor:
    """The numbers of an array; refused if its bytes are not what shape and type say."""
    order = "C"
    if isinstance(array, Scalar):
        (dtype, raw), shape = array.parts, ()
    elif isinstance(array, FromBuffer):
        raw, dtype, shape, order = array.parts
    else:
        _, shape, dtype, is_fortran, raw = array.state
        order = "F" if is_fortran else "C"
    raw = raw.parts[0] if isinstance(raw, Bytes) else raw
    raw = raw.encode("latin1") if isinstance(raw, str) else raw  # Python 2 wrote bytes so
    if not isinstance(raw, bytes | bytearray):  # bytes() of a number would make that many
        raise pickle.UnpicklingError(f"an array made of {type(raw).__name__}")
    code, byte_order = dtype.parts[0], "<" if dtype.state is None else dtype.state[1]
    if not re.fullmatch("[biuf][1248]", str(code)) or byte_order not in ("<", ">", "|", "="):
        raise pickle.UnpicklingError(f"an array of type {code}")
    kind = np.dtype(byte_order.replace("|", "<") + code)
    if len(raw) != math.prod(shape) * kind.itemsize:
        raise pickle.UnpicklingError(f"{len(raw)} bytes for an array of {shape} {kind}")
    values = np.frombuffer(raw, kind).reshape(shape, order=order)
    return torch.from_numpy(values.astype(kind.newbyteorder("="), order="C"))


class ArrayUnpickler(pickle.Unpickler):
    """Makes plain containers and stand-ins for numpy's arrays, and nothing else."""

    ALLOWED = {
        "_codecs.encode": Bytes,
        "collections.OrderedDict": OrderedDict,
        "numpy.dtype": Dtype,
        "numpy.ndarray": Array,
        # Numpy 2 has them in _core, numpy 1 in core.
        "numpy.core.multiarray._reconstruct": Array,
        "numpy.core.multiarray.scalar": Scalar,
        "numpy.core.numeric._frombuffer": FromBuffer,
    }

    def find_class(self, module: str, name: str) -> type:
        """One of the few; everything else is refused before it is imported."""
        found = self.ALLOWED.get(f"{module}.{name}".replace("numpy._core.", "numpy.core."))
        if found is None:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")
        return found


def _check_and_convert(contents: list, size: int) -> None:
    """Put tensors in place of numpy's arrays; refuse what would cost memory or spoil a message.

    Args:
        contents: what was read, in a list.
        size: bytes of the file. A tensor may claim any size without having the numbers; what
            copies it would need the memory.
    """
    # Each container once: a file may name one again and again, in itself too.
    waiting: list[Any] = [contents]
    seen: set[int] = set()
    tensors: dict[Array, Tensor] = {}
    while waiting:
        container = waiting.pop()
        if id(container) in seen:
            continue
        seen.add(id(container))
        is_dict = isinstance(container, dict)
        if is_dict and any(isinstance(key, str) and CONTROL.search(key) for key in container):
            raise ValueError("it holds names with control characters")
        # An OrderedDict may carry them: such as one called `get`, in the way of its method.
        if set(getattr(container, "__dict__", ())) - {"_metadata"}:
            raise ValueError("it holds a dict with attributes")
        for key, value in container.items() if is_dict else enumerate(container):
            if isinstance(value, Array) and not isinstance(container, tuple):
                if value not in tensors:
                    tensors[value] = _to_tensor(value)
                container[key] = value = tensors[value]
            if isinstance(value, dict | list | tuple):
                waiting.append(value)
            elif isinstance(value, Tensor):
                _check_tensor(value, size)


def _check_tensor(value: Tensor, size: int) -> None:
    dense = value.layout is torch.strided and value.device.type == "cpu" and not value.is_nested
    if not dense or value.is_quantized or value.is_complex():
        raise ValueError("it holds a tensor that is not one of plain numbers")
    if value.numel() * value.element_size() > size:
        raise ValueError(f"it holds a tensor of {value.numel()} numbers, more than fit into it")
