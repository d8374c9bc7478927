"""A trained model from a file, whoever trained it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from retinanet.training.checkpoint import check_trained, read_checked
from retinanet.weights.pretrained import unwrapped
from retinanet.weights.third_party import read_third_party

# Names of unknown parameters are cut in messages.
NAMES_CHARACTERS = 200


def read_trained(path: Path) -> dict[str, Any]:
    """A checkpoint of this project, or the same made from one of another.

    Nothing in a file is executed. Whose it is shows in the names of its parameters.

    Args:
        path: a ``.pt`` or ``.pth`` of this project, torchvision, detectron2 or mmdetection, or a
            ``.pkl`` of detectron2.

    Returns:
        Weights, classes and the settings that detection needs, as in a checkpoint of ours;
        ``origin`` is whose it was. ``classes["names"]`` is None where they are not known.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, or nobody's RetinaNet.
    """
    contents = read_checked(path)
    if isinstance(contents, dict) and "format" in contents:
        return check_trained(contents, path)
    state = unwrapped(contents) or {}
    contents = contents if isinstance(contents, dict) else {}
    try:
        checkpoint = read_third_party(state, contents)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if checkpoint is None:
        names = ", ".join(sorted(map(str, state or contents))[:3])[:NAMES_CHARACTERS] or "nothing"
        raise ValueError(
            f"{path} is no checkpoint of a RetinaNet of this project, torchvision, detectron2 or "
            f"mmdetection (it holds {names}, ...); weights of a backbone belong into model.weights."
        )
    return checkpoint
