"""A trained model from a file, whoever trained it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from retinanet.training.checkpoint import FORMAT, check_trained, read_checked
from retinanet.weights import detectron2, mmdetection, torchvision
from retinanet.weights.pretrained import unwrapped
from retinanet.weights.third_party import SIZES, Foreign

# Names of a stranger's parameters are cut in messages.
NAMES_CHARACTERS = 200

PROJECTS = (torchvision, detectron2, mmdetection)

# Settings of the group `data` that say where images are, which another project's file does not.
NOT_RECORDED = (
    "name",
    "root",
    "train_images",
    "train_annotations",
    "val_images",
    "val_annotations",
    "workers",
    "keep_empty",
    "on_bad_image",
)


def read_trained(path: Path) -> dict[str, Any]:
    """A checkpoint of this project, or the same made from one of another.

    Nothing in a file is executed. Whose it is shows in the names of its parameters.

    Args:
        path: a ``.pt`` or ``.pth`` of this project, torchvision, detectron2 or mmdetection, or a
            ``.pkl`` of detectron2.

    Returns:
        Weights, classes and the settings that detection needs, as in a checkpoint of ours;
        ``origin`` tells whose it was. ``classes["names"]`` is None where they are not known.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, or nobody's RetinaNet.
    """
    contents = read_checked(path)
    if isinstance(contents, dict) and "format" in contents:
        return check_trained(contents, path)
    state = unwrapped(contents)
    about = contents if isinstance(contents, dict) else {}
    for project in PROJECTS:
        if state is not None and project.recognizes(state):
            try:
                return as_checkpoint(project.read(state, about))
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
    names = ", ".join(sorted(map(str, state or about))[:3])[:NAMES_CHARACTERS] or "nothing"
    raise ValueError(
        f"{path} is no checkpoint of a RetinaNet of this project, torchvision, detectron2 or "
        f"mmdetection (it holds {names}, ...); weights of a trunk belong into model.weights."
    )


def as_checkpoint(foreign: Foreign) -> dict[str, Any]:
    """What :func:`retinanet.training.checkpoint.save_checkpoint` of a run would have kept."""
    data = dict.fromkeys(NOT_RECORDED) | SIZES | {"resize": foreign.resize}
    return {
        "format": FORMAT,
        "origin": foreign.origin,
        "model": foreign.weights,
        "settings": {
            "data": data,
            "model": foreign.model,
            "anchors": foreign.anchors,
            "postprocess": foreign.postprocess,
            "precision": "fp32",
            "seed": 0,
        },
        "classes": {"names": foreign.names, "ids": foreign.ids},
        "step": None,
        "val_data": None,
    }
