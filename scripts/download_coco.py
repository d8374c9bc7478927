"""Download COCO 2017 as data=coco expects it: `curl -L -C - -O`, an md5 check, unpacking.

  python -m scripts.download_coco /datasets/coco --parts val2017 annotations

Parts that are complete are skipped; after an interruption the same command continues.
"""

import argparse
import hashlib
import shutil
import subprocess
import zipfile
from pathlib import Path

from .command_line import exit_status, new_parser

SOURCE = "http://images.cocodataset.org"  # no https: it has no certificate of its own name
ANNOTATIONS = "annotations/annotations_trainval2017.zip"
# Archive, its md5 as PaddleDetection and MLCommons list it, the files it leaves and their number.
PARTS = {
    "train2017": ("zips/train2017.zip", "cced6f7f71b7629ddf16f17bbcfab6b2", "*.jpg", 118_287),
    "val2017": ("zips/val2017.zip", "442b8da7639aecaf257c1dceb8ba8c80", "*.jpg", 5000),
    "annotations": (ANNOTATIONS, "f4bbac642086de4f52a3fdda2de5fa2c", "instances_*2017.json", 2),
}


def main(arguments: list[str] | None = None, parts: dict[str, tuple] = PARTS) -> int:
    """Download and unpack every part that is missing; the exit status."""
    parser = new_parser("download_coco", __doc__)
    parser.add_argument("root", type=Path, help="folder of the data set; made when missing")
    parser.add_argument("--parts", nargs="+", choices=list(parts), default=list(parts))
    parser.add_argument("--source", default=SOURCE, help="of zips/ and annotations/: %(default)s")
    parser.add_argument("--remove-archives", action="store_true", help="each once it is unpacked")
    args = parser.parse_args(arguments)
    return exit_status(lambda: sum(bring(args, name, *parts[name]) for name in args.parts))


def bring(args: argparse.Namespace, name: str, path: str, md5: str, files: str, count: int) -> int:
    """Download, check and unpack one part unless it is complete; 0, or OSError or ValueError."""
    folder, archive = args.root / name, args.root / Path(path).name
    if len(list(folder.glob(files))) < count:
        if shutil.which("curl") is None:
            raise OSError("no curl on this machine; install it, or follow data/README.md by hand.")
        folder.mkdir(parents=True, exist_ok=True)
        curl = ["curl", "-L", "-C", "-", "-O", "--fail", f"{args.source.rstrip('/')}/{path}"]
        if status := subprocess.run(curl, cwd=args.root, check=False).returncode:
            raise OSError(f"curl ended with status {status}; the same command continues.")
        with archive.open("rb") as file:
            found = hashlib.file_digest(file, "md5").hexdigest()
        if found != md5:
            archive.unlink()
            raise ValueError(f"{archive} had md5 {found}, not the published {md5}: removed.")
        # zipfile checks each CRC; only whole files move to where training looks for them.
        zipfile.ZipFile(archive).extractall(args.root / "unpacking")
        for file in (args.root / "unpacking" / name).iterdir():
            file.replace(folder / file.name)
        shutil.rmtree(args.root / "unpacking")
        if args.remove_archives:
            archive.unlink()
    print(f"{name}: complete", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
