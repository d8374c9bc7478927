"""Write files atomically."""

import os
from pathlib import Path


def check_writable(folder: Path, setting: str) -> None:
    """Refuse, before the work, a folder in which nothing can be written; it is made when missing.

    Args:
        folder: where results are to go.
        setting: that chooses another one.

    Raises:
        OSError: it cannot be made, or written to.
    """
    probe = folder / f".{os.getpid()}.probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"?")  # a full disk makes files that hold nothing
        probe.unlink()
    except OSError as error:
        why = error.strerror or error
        raise OSError(f"cannot write to {folder} ({why}); choose another {setting}.") from error


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file through a temporary one beside it, so that nobody ever sees half of it.

    Several processes may write the same file: one of them wins.

    Args:
        path: replaced if it exists; its folder is made when missing.
        content: text is written as UTF-8.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())  # or after a power failure the name may have no content
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
