"""Download COCO 2017 and unpack it as data=coco expects it.

  python -m scripts.download_coco /datasets/coco
  python -m scripts.download_coco /datasets/coco --parts val2017 annotations

Three archives: train2017 19.3 GB, val2017 816 MB, annotations 253 MB. What is complete is
skipped; ctrl-c, a broken connection or a full disk leave what has come so far, and the same
command goes on. Size and md5 of each archive are compared with the published ones, the CRC of
each file when it is unpacked.

Exit status: 0 when all parts are there, 130 after ctrl-c, 1 otherwise.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from retinanet.terminal import INTERRUPTED, MISTAKES, complain
from scripts.downloads.fetch import Expected, fetch
from scripts.downloads.unpack import gigabytes, unpack

# The Consortium's own server. It has no certificate of its own name, hence no https; that the
# files are the right ones is known from their checksums.
SOURCE = "http://images.cocodataset.org"


@dataclass(frozen=True, slots=True)
class Part:
    """One archive, and what is there when it is unpacked."""

    path: str  # below the source
    expected: Expected
    unpacked: int  # bytes on disk, about
    num_images: int = 0  # in the folder of its name
    files: Mapping[str, int] = field(default_factory=dict)  # below the root -> bytes

    def is_complete(self, root: Path, name: str) -> bool:
        """Whether all its images, or its files, are there."""
        if self.files:
            return all(size_of(root / file) == size for file, size in self.files.items())
        return sum(size > 0 for size in sizes_in(root / name, ".jpg")) >= self.num_images


def size_of(path: Path) -> int:
    """Bytes of a file; 0 where there is none."""
    return path.stat().st_size if path.is_file() else 0


def sizes_in(folder: Path, suffix: str) -> list[int]:
    """Bytes of the files of a folder; none where there is no folder."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return [entry.stat().st_size for entry in entries if entry.name.endswith(suffix)]


# Sizes as the server gives them; md5 as PaddleDetection and MLCommons list them.
PARTS = {
    "train2017": Part(
        "zips/train2017.zip",
        Expected(19_336_861_798, "cced6f7f71b7629ddf16f17bbcfab6b2"),
        unpacked=19_500_000_000,
        num_images=118_287,
    ),
    "val2017": Part(
        "zips/val2017.zip",
        Expected(815_585_330, "442b8da7639aecaf257c1dceb8ba8c80"),
        unpacked=820_000_000,
        num_images=5000,
    ),
    "annotations": Part(
        "annotations/annotations_trainval2017.zip",
        Expected(252_907_541, "f4bbac642086de4f52a3fdda2de5fa2c"),
        unpacked=850_000_000,
        files={
            "annotations/instances_train2017.json": 469_785_474,
            "annotations/instances_val2017.json": 19_987_840,
        },
    ),
}


def main(arguments: Sequence[str] | None = None, parts: Mapping[str, Part] = PARTS) -> int:
    """Bring every part that is asked for and not there."""
    args = read_arguments(arguments, list(parts))
    try:
        download(args.root, {name: parts[name] for name in args.parts}, args)
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command goes on.\n")
        return INTERRUPTED
    except MISTAKES as error:
        complain(error)
        return 1
    if set(args.parts) == set(parts):
        print(f"python train.py data=coco data.root={args.root}")
    return 0


def read_arguments(arguments: Sequence[str] | None, names: list[str]) -> argparse.Namespace:
    """Root folder and options."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.download_coco",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("root", type=Path, help="folder of the data set; made when missing")
    parser.add_argument(
        "--parts", nargs="+", choices=names, default=names, help="default: %(default)s"
    )
    parser.add_argument(
        "--source", default=SOURCE, help="where zips/ and annotations/ are (default: %(default)s)"
    )
    parser.add_argument(
        "--remove-archives", action="store_true", help="each one once it is unpacked"
    )
    return parser.parse_args(arguments)


def download(root: Path, parts: Mapping[str, Part], args: argparse.Namespace) -> None:
    """Fetch and unpack, one part after the other.

    Args:
        root: of the data set.
        parts: to bring.
        args: ``source`` and ``remove_archives``.

    Raises:
        ValueError: a file that is not the published one.
        OSError: no network, no such file, no room.
    """
    root.mkdir(parents=True, exist_ok=True)
    wanted = {name: part for name, part in parts.items() if not part.is_complete(root, name)}
    for name in parts:
        if name not in wanted:
            print(f"{name}: complete", flush=True)
    check_space(root, wanted, remove=args.remove_archives)
    for name, part in wanted.items():
        archive = root / Path(part.path).name
        if not archive.is_file():
            print(f"{name}: downloading {gigabytes(part.expected.size)}", flush=True)
            fetch(f"{args.source.rstrip('/')}/{part.path}", archive, part.expected)
        print(f"{name}: unpacking {archive.name}", flush=True)
        written = unpack(archive, root, name)
        if not part.is_complete(root, name):
            raise ValueError(f"{archive} is unpacked, but {name} is not complete; remove it.")
        print(f"{name}: complete, {written} files written", flush=True)
        if args.remove_archives:
            archive.unlink()


def check_space(root: Path, wanted: Mapping[str, Part], *, remove: bool) -> None:
    """Refuse a disk that cannot hold what is to come.

    Args:
        root: of the data set.
        wanted: the parts to bring.
        remove: archives are removed once unpacked, so only one is there at a time.

    Raises:
        OSError: what is needed and what is free.
    """
    needed = kept = 0
    for name, part in wanted.items():
        archive = root / Path(part.path).name
        have = size_of(archive) or size_of(archive.with_name(f"{archive.name}.partial"))
        packed = max(part.expected.size - have, 0)
        unpacked = max(part.unpacked - sum(sizes_in(root / name, "")), 0)
        needed = max(needed, kept + packed + unpacked)
        # Of a removed archive also what was there before becomes free.
        kept += unpacked - have if remove else packed + unpacked
    free = shutil.disk_usage(root).free
    if needed > free:
        advice = "" if remove else " or give --remove-archives"
        raise OSError(
            f"{root} has {gigabytes(free)} free, {', '.join(wanted)} need {gigabytes(needed)}; "
            f"make room{advice}."
        )


if __name__ == "__main__":
    sys.exit(main())
