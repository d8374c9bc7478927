"""Unpacking an archive, file by file: interrupted, it goes on where it was."""

from __future__ import annotations

import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from retinanet.terminal import has_bar


def unpack(archive: Path, root: Path, top: str) -> int:
    """Unpack a zip into ``root``; files that are there in full stay.

    Every file appears when it is whole and its CRC is right. The archive is looked through before
    anything is written.

    Args:
        archive: the zip.
        root: folder to unpack into.
        top: the one folder that its files may lie in.

    Returns:
        How many files were written.

    Raises:
        ValueError: not a zip, damaged, or with a member that is a link, is encrypted, or would be
            written outside ``root / top``.
        OSError: the disk is full, or not writable.
    """
    try:
        with zipfile.ZipFile(archive) as source:
            members = [member for member in source.infolist() if not member.is_dir()]
            for member in members:
                _refuse_unsafe(archive, member, top)
            missing = [m for m in members if not _is_there(root / m.filename, m.file_size)]
            _check_space(archive, root, sum(member.file_size for member in missing))
            for member in tqdm(
                missing,
                desc=f"unpack {archive.name}",
                unit="file",
                leave=False,
                disable=not has_bar(),
            ):
                _write(source, member, root)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise ValueError(
            f"{archive} is damaged: {error}. Remove it; the same command downloads it again."
        ) from error
    return len(missing)


def _refuse_unsafe(archive: Path, member: zipfile.ZipInfo, top: str) -> None:
    """Refuse what would be written elsewhere, or be no plain file.

    Raises:
        ValueError: the member and why.
    """
    path = PurePosixPath(member.filename)
    kind = stat.S_IFMT(member.external_attr >> 16)
    problem = None
    if "\\" in member.filename or ".." in path.parts or path.parts[:1] != (top,):
        problem = f"does not lie in {top}/"
    elif kind not in (0, stat.S_IFREG):
        problem = "is a link or a device"
    elif member.flag_bits & 1:
        problem = "is encrypted"
    if problem:
        raise ValueError(
            f"{archive} is not the archive it should be: {member.filename!r} {problem}. "
            f"Nothing was unpacked; remove it."
        )


def _is_there(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _check_space(archive: Path, root: Path, needed: int) -> None:
    free = shutil.disk_usage(root).free
    if needed > free:
        raise OSError(
            f"{root} has {gigabytes(free)} free, unpacking {archive.name} needs "
            f"{gigabytes(needed)}; make room, the same command goes on."
        )


def gigabytes(size: int) -> str:
    """A size for people: 815 MB, 19.3 GB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _write(source: zipfile.ZipFile, member: zipfile.ZipInfo, root: Path) -> None:
    """One file, through a temporary one beside it; reading to the end checks the CRC."""
    target = root / member.filename
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.partial")
    try:
        with source.open(member) as packed, partial.open("wb") as file:
            shutil.copyfileobj(packed, file, 1 << 20)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
