"""Pictures that are there twice: in one split, or in training and in validation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from retinanet.data.coco import CocoData
from retinanet.data.splits import shared_images
from retinanet.data.verdict import Sight, Verdict
from retinanet.tools.check_data.filecheck import Seen

# Validation images that are compared with all training images at once.
CHUNK = 64
# Pictures whose gists differ in at most so many of 256 bits look alike. Of the 25,000 pairs of a
# training and a validation picture in BCCD and in a part of COCO none differs in fewer than 72.
# Copies at half the size, of JPEG quality 40, brighter by a fifth or without a border of one
# percent: nine in ten of each kind differ in at most 20.
ALIKE_BITS = 20


def check_repeated(data: CocoData, found: Sequence[Seen], verdict: Verdict) -> None:
    """The same picture under two names in one split.

    Args:
        data: the split.
        found: from :func:`retinanet.tools.check_data.filecheck.look` with pixels.
        verdict: gets what is odd.
    """
    first: dict[bytes, int] = {}
    same = {}
    for seen in found:
        if seen.digest is None:
            continue
        before = first.setdefault(seen.digest, seen.index)
        if before != seen.index:
            same[seen.index] = before

    def place(index: int) -> str:
        alike = _same_boxes(data, index, same[index])
        boxes = "with the same boxes" if alike else "with other boxes"
        return f"{_place(data, index)} is {data.image_path(same[index])}, {boxes}"

    verdict.note(
        "images: the same picture under two names",
        list(same),
        place,
        "takes them for different images",
        "Remove one of them. Where their boxes differ, one has wrong or missing boxes.",
        lambda index: (Sight(data, index), Sight(data, same[index])),
    )


def _same_boxes(data: CocoData, one: int, other: int) -> bool:
    """Whether two images have the same objects, in any order."""
    objects = []
    for index in (one, other):
        boxes, labels = data.boxes(index)
        objects.append(sorted(zip(labels.tolist(), boxes.tolist(), strict=True)))
    return objects[0] == objects[1]


def check_contents(
    train: CocoData, val: CocoData, found: tuple[Sequence[Seen], Sequence[Seen]], verdict: Verdict
) -> None:
    """The same picture, or one that looks like it, in training and in validation.

    Args:
        train: of the splits.
        val: of the splits.
        found: from :func:`retinanet.tools.check_data.filecheck.look` with pixels, for both.
        verdict: gets what is odd.
    """
    ours = {seen.digest: seen.index for seen in found[0] if seen.digest is not None}
    known = set(shared_images(train, val))  # the same file: told before
    same = {
        seen.index: ours[seen.digest]
        for seen in found[1]
        if seen.digest in ours and seen.index not in known
    }
    alike = look_alike(found[0], [s for s in found[1] if s.index not in known | same.keys()])

    def place(index: int) -> str:
        verb, other = ("is", same) if index in same else ("looks like", alike)
        return f"{_place(val, index)} {verb} {train.image_path(other[index])}"

    def look(index: int) -> tuple[Sight, ...]:
        other = same[index] if index in same else alike[index]
        return Sight(val, index), Sight(train, other)

    verdict.note(
        "images: the same picture in training and validation, under two names",
        list(same),
        place,
        "takes them for different images: AP will look better than it is",
        "Remove them from one of the two files.",
        look,
    )
    verdict.note(
        "images: pictures that look alike in training and validation",
        list(alike),
        place,
        "takes them for different images: AP may look better than it is",
        "Look at them: copies of another size, and pictures of one scene or film, belong in one "
        "of the two files.",
        look,
    )


def _place(data: CocoData, index: int) -> str:
    return f"{data.path}: image id {data.image_ids[index]}: {data.image_path(index)}"


def look_alike(train: Sequence[Seen], val: Sequence[Seen]) -> dict[int, int]:
    """Validation images -> the training image whose gist is nearest, where it is near."""
    ours = [seen for seen in train if seen.gist is not None]
    theirs = [seen for seen in val if seen.gist is not None]
    if not ours or not theirs:
        return {}
    known, asked = _signs(ours), _signs(theirs)
    found = {}
    for start in range(0, len(asked), CHUNK):
        # Of n signs a pair agrees in (n + product) / 2.
        agreeing, nearest = (known @ asked[start : start + CHUNK].T).max(dim=0)
        differing = (known.shape[1] - agreeing) / 2
        for i in torch.nonzero(differing <= ALIKE_BITS).flatten().tolist():
            found[theirs[start + i].index] = ours[int(nearest[i])].index
    return found


def _signs(seen: Sequence[Seen]) -> Tensor:
    """(N, 256) float32, 1 and -1."""
    packed = np.frombuffer(b"".join(one.gist or b"" for one in seen), dtype=np.uint8)
    bits = np.unpackbits(packed).reshape(len(seen), -1)
    return torch.from_numpy(bits).float() * 2 - 1
