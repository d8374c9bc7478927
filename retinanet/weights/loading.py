"""Files of tensors from anywhere, read so that nothing in them runs and nothing slips through."""

from __future__ import annotations

import math
import pickle
import re
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

# What torch.load and zipfile raise on damaged or foreign bytes, found by flipping bits.
UNREADABLE = (
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
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


class LeftOut:
    """Stands where a file has an object that is not wanted; takes anything, does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> LeftOut:
        """An empty object, whatever it is made of."""
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        """Forget ``state``."""


def read_tensors(path: Path) -> Any:
    """Containers and tensors of a file, on the CPU, after checking every byte that has a checksum.

    Args:
        path: written by ``torch.save``, today's format or the one before, or a pickle of numpy
            arrays, as detectron2's models are. Its first bytes tell, not its name.

    Raises:
        ValueError: not such a file, damaged, or it holds more than containers and tensors.
    """
    try:
        found = _read(path)
        _check_contents(found, path.stat().st_size)
        return found
    except PermissionError:
        raise
    except UNREADABLE as error:
        if isinstance(error, pickle.UnpicklingError):  # torch's own words advise to trust the file
            raise ValueError(
                f"no file of tensors and plain containers alone{_what_was_refused(error)}"
            ) from error
        reason = (str(error).splitlines() or [""])[0]
        kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
        raise ValueError(f"{kind}{reason}") from error


def _read(path: Path) -> Any:
    with path.open("rb") as file:
        head = file.read(len(TORCH_OLD))
        if not head.startswith((TORCH_ZIP, TORCH_OLD)):
            file.seek(0)
            return _tensors(_ArrayUnpickler(file).load(), {})
    if head.startswith(TORCH_ZIP):
        _check_every_byte(path)
    stand_ins = [(LeftOut, name) for name in NOT_WANTED]
    with warnings.catch_warnings(), torch.serialization.safe_globals(stand_ins):
        # Foreign bytes make the unpickler warn of what it is about to refuse.
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=True)


def _check_every_byte(path: Path) -> None:
    """Refuse a file that is no zip file, or whose entries differ from their checksums.

    Single flipped bits load silently otherwise: torch does not look at the checksums.
    """
    with zipfile.ZipFile(path) as archive:
        # Torch compresses nothing: another method is a flipped bit, or somebody else's file.
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("its entries are compressed")
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"wrong checksum of {damaged}")


def _check_contents(found: Any, most: int) -> None:
    """Refuse tensors that a file cannot hold, and names that would make messages unreadable.

    Args:
        found: what was read.
        most: bytes of the file. A tensor may claim any size without having the numbers; what
            copies it would need the memory.
    """
    waiting, seen = [found], set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            _check_tensor(value, most)
        elif isinstance(value, dict):
            if any(isinstance(key, str) and CONTROL.search(key) for key in value):
                raise ValueError("it holds names with control characters")
            waiting += value.values()
        elif isinstance(value, list | tuple):
            waiting += value


def _check_tensor(value: Tensor, most: int) -> None:
    dense = value.layout is torch.strided and value.device.type == "cpu" and not value.is_nested
    if not dense or value.is_quantized or value.is_complex():
        raise ValueError("it holds a tensor that is not one of plain numbers")
    if value.numel() * value.element_size() > most:
        raise ValueError(f"it holds a tensor of {value.numel()} numbers, more than fit into it")


def _what_was_refused(error: pickle.UnpicklingError) -> str:
    """Torch's and our unpickler name it after the word GLOBAL."""
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    return f", it wants {found[1]}" if found else ""


class _Dtype:
    """Stands for a numpy type in a pickle; only plain numbers become one."""

    def __init__(self, code: str, *_: Any) -> None:
        """Remember what it is called."""
        self.code = str(code)
        self.order = "<"

    def __setstate__(self, state: tuple) -> None:
        """Take the byte order out of numpy's state."""
        self.order = state[1]

    def numpy(self) -> np.dtype:
        """The type; an error for objects, texts and records."""
        if not re.fullmatch("[biuf][1248]", self.code) or self.order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(f"an array of type {self.code}")
        return np.dtype(self.order.replace("|", "<") + self.code)


class _Array:
    """Stands for a numpy array in a pickle: its bytes, looked at when all is read.

    Numpy's own would let a file say that its bytes are pointers.
    """

    def __init__(self, *_: Any) -> None:
        """As empty as what numpy's pickles make first."""
        self.parts: tuple = ()

    def __setstate__(self, state: tuple) -> None:
        """Take numpy's state: version, shape, type, Fortran's order or not, bytes."""
        _, shape, dtype, is_fortran, raw = state
        self.parts = shape, dtype, "F" if is_fortran else "C", raw

    def tensor(self) -> Tensor:
        """The array as a tensor.

        Raises:
            UnpicklingError: the bytes are not what shape and type say.
        """
        shape, dtype, order, raw = self.parts
        if isinstance(raw, str):  # Python 2 wrote bytes so
            raw = raw.encode("latin1")
        if not isinstance(raw, bytes | bytearray):  # bytes() of a number would make that many
            raise pickle.UnpicklingError(f"an array made of {type(raw).__name__}")
        kind = dtype.numpy()
        if len(raw) != math.prod(shape) * kind.itemsize:
            raise pickle.UnpicklingError(f"{len(raw)} bytes for an array of {shape} {kind}")
        array = np.frombuffer(raw, kind).reshape(shape, order=order)
        return torch.from_numpy(array.astype(kind.newbyteorder("="), order="C"))


# Objects without attributes where functions would do: a pickle may set those of what it names.
class _Scalar:
    """Makes one number."""

    __slots__ = ()

    def __call__(self, dtype: _Dtype, raw: bytes) -> _Array:
        array = _Array()
        array.parts = (), dtype, "C", raw
        return array


class _FromBuffer:
    """Makes an array as pickles of protocol 5 carry it."""

    __slots__ = ()

    def __call__(self, raw: bytes, dtype: _Dtype, shape: tuple, order: str) -> _Array:
        array = _Array()
        array.parts = shape, dtype, order, raw
        return array


class _Latin1:
    """Makes bytes as pickles of protocol 2 carry them."""

    __slots__ = ()

    def __call__(self, text: str, encoding: str) -> bytes:
        if encoding != "latin1":
            raise pickle.UnpicklingError(f"bytes in {encoding}")
        return text.encode("latin1")


class _ArrayUnpickler(pickle._Unpickler):
    """Knows how to make arrays of numbers and plain containers, and nothing else.

    The one written in Python: the other makes room for as many objects as a file says it has.
    """

    ALLOWED: dict[tuple[str, str], Callable] = {
        ("_codecs", "encode"): _Latin1(),
        ("collections", "OrderedDict"): OrderedDict,
        ("numpy", "dtype"): _Dtype,
        ("numpy", "ndarray"): _Array,
    }
    # Numpy 2 and numpy 1 have them in modules of different names.
    for core in ("numpy._core", "numpy.core"):
        ALLOWED[f"{core}.multiarray", "_reconstruct"] = _Array
        ALLOWED[f"{core}.multiarray", "scalar"] = _Scalar()
        ALLOWED[f"{core}.numeric", "_frombuffer"] = _FromBuffer()

    def __init__(self, file: BinaryIO) -> None:
        """Read pickles of Python 2 too."""
        super().__init__(file, encoding="latin1")

    def find_class(self, module: str, name: str) -> Callable:
        """One of the few; everything else is refused before it is imported."""
        try:
            return self.ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name}") from None

    def get_extension(self, code: int) -> None:
        """Refuse what somebody registered under a number: it may be known without its name."""
        raise pickle.UnpicklingError(f"extension {code}")


def _tensors(value: Any, made: dict[int, Any]) -> Any:
    """The same containers with tensors instead of arrays.

    Args:
        value: what was read.
        made: what became of the containers and arrays already seen. A file may name one of them
            again and again, in itself too: a few hundred bytes could stand for more than any
            memory holds.
    """
    if not isinstance(value, dict | list | tuple | _Array):
        return value
    if id(value) not in made:
        if isinstance(value, _Array):
            made[id(value)] = value.tensor()
            return made[id(value)]
        made[id(value)] = copied = {} if isinstance(value, dict) else []
        if isinstance(value, dict):
            copied.update((key, _tensors(item, made)) for key, item in value.items())
        else:
            copied.extend(_tensors(item, made) for item in value)
    return made[id(value)]
