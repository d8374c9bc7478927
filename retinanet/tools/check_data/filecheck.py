"""Every image file beside its record: from the header alone, or from all of its pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from retinanet.data.coco import CocoData, Reading
from retinanet.data.images import BadImage, Header, read_header, read_image
from retinanet.data.loader import MAX_BAD_SHARE, size_problem
from retinanet.data.splits import describe_missing
from retinanet.data.verdict import Look, Sight, Verdict
from retinanet.data.workers import num_cores, receive, share, start_worker
from retinanet.tools.check_data.perceptual_hash import digest_of, gist_of


class Seen(NamedTuple):
    """What was found in one image file."""

    index: int  # of the image in the data set
    header: Header | None  # None: missing or unreadable
    size: tuple[int, int] | None  # height, width as training reads it
    error: str | None  # why it cannot be read
    digest: bytes | None = None  # of its pixels, where they were decoded
    gist: bytes | None = None  # what they look like, see likeness.py


class _Files(Dataset):
    """Looks into the files of a data set.

    Args:
        data: where they are listed.
        pixels: decode each; otherwise only those whose header leaves a doubt.
    """

    def __init__(self, data: CocoData, pixels: bool) -> None:
        self.data = data
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Seen:
        path = self.data.image_path(index)
        listed = tuple(self.data.sizes[index].tolist())
        pixels = None
        try:
            header = read_header(path)
            size = header.height, header.width
            if self.pixels or not header.certain or size != listed:
                pixels = read_image(path)
                size = tuple(pixels.shape[1:])
        except FileNotFoundError:
            return Seen(index, None, None, None)
        except (BadImage, OSError) as error:
            return Seen(index, None, None, str(error))
        if pixels is None or not self.pixels:
            return Seen(index, header, size, None)
        return Seen(index, header, size, None, digest_of(pixels), gist_of(pixels))


def look(data: CocoData, *, pixels: bool, workers: int) -> Iterator[Seen]:
    """Every image file, in the order of the data set.

    Args:
        data: where they are listed.
        pixels: decode and hash each; otherwise read headers, and decode where they leave a doubt.
        workers: processes, as far as there are CPU cores; 0 for none.
    """
    loader = DataLoader(
        _Files(data, pixels),
        batch_size=None,
        num_workers=min(workers, num_cores()),
        collate_fn=share,
        worker_init_fn=start_worker,
        generator=torch.Generator(),
    )
    yield from receive(loader)


def check_files(reading: Reading, found: Sequence[Seen], skip: bool, verdict: Verdict) -> None:
    """What training will meet when it reads the images.

    Args:
        reading: of the annotation file.
        found: from :func:`look`.
        skip: ``data.on_bad_image=skip``: unreadable images do not stop it.
        verdict: gets what is wrong and what is odd.
    """
    unreadable = {seen.index: seen.error for seen in found if seen.error is not None}
    missing = [seen.index for seen in found if seen.header is None and seen.error is None]
    kind = "images: the file cannot be read"
    if skip:
        does = f"goes on without, unless more than {MAX_BAD_SHARE:.0%} are missing or unreadable"
        _note_missing(reading, missing, does, verdict)
        verdict.note(
            kind, list(unreadable), _places(reading, unreadable), does, "Replace the files."
        )
    else:
        verdict.refuse(
            kind,
            list(unreadable),
            _places(reading, unreadable),
            unreadable.__getitem__,
            "Replace the file, or set data.on_bad_image=skip to go on without.",
            does="stops when it first reads the file",
        )
    whole = [seen for seen in found if seen.header is not None]
    _check_sizes(reading, whole, verdict)
    _check_kinds(reading, whole, verdict)


def _note_missing(reading: Reading, missing: list[int], does: str, verdict: Verdict) -> None:
    verdict.note(
        "images: the file is missing",
        missing,
        lambda index: describe_missing(reading.data, index),
        does,
        "Complete the folder, or remove the records.",
    )


def other_sizes(data: CocoData, found: Sequence[Seen]) -> list[Seen]:
    """The images of another size than their record says."""
    sizes = data.sizes.tolist()
    return [s for s in found if s.size is not None and list(s.size) != sizes[s.index]]


def _check_sizes(reading: Reading, found: Sequence[Seen], verdict: Verdict) -> None:
    """Refuse images of another size than their record says."""
    for seen in other_sizes(reading.data, found):
        problem = size_problem(reading.data, seen.index, seen.size)
        where = _places(reading, {seen.index: problem.found})(seen.index)
        verdict.refuse(
            problem.kind,
            [seen.index],
            lambda _, where=where: where,
            lambda _, where=where, problem=problem: f"{where}. {problem.remedy}",
            problem.remedy,
            does="stops when it first reads the file",
            look=_look(reading),
        )


def _check_kinds(reading: Reading, found: Sequence[Seen], verdict: Verdict) -> None:
    """Files that are not what they look like."""
    formats = Image.registered_extensions()
    refused = {seen.index for seen in other_sizes(reading.data, found)}
    named: dict[int, Any] = {}
    deep, turned = {}, {}
    for seen in found:
        path = reading.data.image_path(seen.index)
        kind = "JPEG" if seen.header.format == "MPO" else seen.header.format
        if formats.get(path.suffix.lower(), kind) != kind:
            named[seen.index] = f"{path} holds {kind}"
        if seen.header.bits == 16:
            deep[seen.index] = str(path)
        # One with the size before turning is refused.
        if seen.header.orientation != 1 and seen.index not in refused:
            turned[seen.index] = f"{path}, orientation {seen.header.orientation}"
    verdict.note(
        "images: the suffix is that of another format",
        list(named),
        _places(reading, named),
        "goes by the content",
        "Nothing is needed here; other tools may go by the name.",
    )
    verdict.note(
        "images: 16 bits a channel",
        list(deep),
        _places(reading, deep),
        "keeps the upper 8 bits",
        "If the pictures look dark or flat, stretch them to 8 bits.",
        _look(reading),
    )
    verdict.note(
        "images: turned by their EXIF orientation",
        list(turned),
        _places(reading, turned),
        "turns them, as viewers do",
        "Make sure that the boxes were drawn on the image as it is displayed.",
        _look(reading),
    )


def _places(reading: Reading, found: dict[int, Any]) -> Any:
    """How findings name an image and what is odd about it."""

    def place(index: int) -> str:
        return reading.images.place(int(reading.image_rows[index]), found[index])

    return place


def _look(reading: Reading) -> Look:
    return lambda index: (Sight(reading.data, index),)
