"""Names of the parts of a data set, and a part set aside where there is only one."""

from __future__ import annotations

import random
import re

from retinanet.tools.formats.annotations import Annotations, Split

# Folders that tools make for the parts.
SPLIT_NAMES = ("train", "training", "val", "valid", "validation", "test")
_KNOWN = re.compile(r"(?<![a-z])(train|val|test)(ing|id|idation)?(?![a-z])")


def split_name(text: str) -> str:
    """``train``, ``val`` or ``test`` where a name says so, as in ``instances_train2017``."""
    found = _KNOWN.search(text.lower())
    return found[1] if found else text


def set_aside(found: Annotations, share: float, seed: int) -> None:
    """Make ``train`` and ``val`` of a data set with one part, by chance.

    Args:
        found: changed in place.
        share: of the images for validation, above 0 and below 1.
        seed: the same one chooses the same images.

    Raises:
        ValueError: it has several parts, or too few images.
    """
    if len(found.splits) != 1:
        names = ", ".join(split.name for split in found.splits)
        raise ValueError(f"--val-share divides one part, but there are {names}; leave it out.")
    whole = found.splits[0]
    num_val = round(share * len(whole.pictures))
    if not 0 < num_val < len(whole.pictures):
        raise ValueError(
            f"--val-share {share:g} of {len(whole.pictures)} images leaves one part empty; choose "
            f"another share."
        )
    chosen = set(random.Random(seed).sample(range(len(whole.pictures)), num_val))
    found.splits = [
        Split(
            name,
            whole.folder,
            [p for row, p in enumerate(whole.pictures) if (row in chosen) == (name == "val")],
        )
        for name in ("train", "val")
    ]
