"""What Linux, macOS and Windows do in different ways: locks of files, memory, synced folders."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

try:
    import fcntl
    import resource
except ImportError:  # Windows
    fcntl = resource = None

# For PROCESS_MEMORY_COUNTERS of Windows: two counters of 32 bits, then eight sizes, of which the
# first is the peak.
_COUNTERS, _PEAK = 9, 1


def lock(path: Path) -> None:
    """Hold a file until this process ends, however it does; what it starts holds nothing.

    Args:
        path: made when missing.

    Raises:
        BlockingIOError: another process holds it.
        OSError: the file system has no locks.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)  # closing it would unlock
    try:
        if fcntl is not None:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            import msvcrt  # of Windows alone

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    except PermissionError as error:
        raise BlockingIOError(*error.args) from error


def peak_memory() -> float:
    """Most memory that this process held so far, GiB."""
    if resource is None:
        counters = (ctypes.c_size_t * _COUNTERS)()
        size, process = ctypes.sizeof(counters), ctypes.c_void_p(-1)  # -1: this process
        ctypes.WinDLL("psapi").GetProcessMemoryInfo(process, ctypes.byref(counters), size)
        return counters[_PEAK] / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux, bytes on macOS
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on disk, as Windows does by itself."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
