"""The built-in data set, `data=shapes`: drawn from a seed and written as a COCO folder.

Layout, field names and conventions are those of COCO 2017, so everything that reads COCO reads
it: category ids with gaps, boxes xywh around the visible pixels, areas of visible masks, masks
as run lengths, dense groups as one annotation with ``iscrowd`` 1, images without objects.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as run_lengths
from tqdm import tqdm

from retinanet.shapes.drawing import NAMES, draw_image
from retinanet.terminal import has_bar

logger = logging.getLogger(__name__)

# Raise it whenever the same seed gives other images or annotations: folders written before
# are then written anew, and nobody compares results of two different sets.
VERSION = 7
TRAIN_IMAGES = 3000
VAL_IMAGES = 200
SEED = 0
# Says that a folder is ours, and what it was made from.
FINGERPRINT_FILE = "shapes.json"
# One per class, with gaps like COCO's, so that ids and labels cannot be mixed up unnoticed.
CATEGORY_IDS = (1, 2, 4, 7, 8, 11)
# JPEG quality at which the set takes about 50 MB and small figures keep their edges.
QUALITY = 92
# Starting processes takes as long as drawing about this many images.
FEWEST_FOR_PROCESSES = 150
# Id of the first image of each split, and the distance between ids: they are no indices.
FIRST_IDS = {"train2017": 100_000, "val2017": 1_000}
ID_STEP = 3


def ensure_shapes(root: Path) -> None:
    """Write the built-in data set into a folder unless exactly that set is there already.

    Args:
        root: folder to make. One that this function made from other arguments is replaced.

    Raises:
        ValueError: something else lies there.
    """
    write_shapes(root, train_images=TRAIN_IMAGES, val_images=VAL_IMAGES, seed=SEED)


def write_shapes(root: Path, *, train_images: int, val_images: int, seed: int) -> None:
    """Write a data set of drawn shapes as ``train2017``, ``val2017`` and ``annotations``.

    The same arguments give the same bytes. The folder appears when it is complete and not
    before; nothing is left of an interrupted call. A folder that already holds this very set
    is left as it is.

    Args:
        root: folder to make. One made earlier from other arguments is replaced.
        train_images: how many, at least 1.
        val_images: how many, at least 1.
        seed: of every random draw, at least 0.

    Raises:
        ValueError: a number is out of range, or ``root`` holds anything not made here.
    """
    numbers = {"train_images": train_images, "val_images": val_images, "seed": seed}
    for name, number in numbers.items():
        least = 0 if name == "seed" else 1
        if number < least:
            raise ValueError(f"write_shapes: {name} must be at least {least}, got {number}.")
    fingerprint = {"made_by": "retinanet data=shapes", "version": VERSION, **numbers}
    # A symbolic link stays one; the folder it points to is made.
    root = Path(root).resolve()
    if _fingerprint(root) == fingerprint:
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}.") as beside:
        new = Path(beside) / "new"
        (new / "annotations").mkdir(parents=True)
        # Each split has its own stream of random numbers.
        _write_split(new, "train2017", train_images, (seed, 0))
        _write_split(new, "val2017", val_images, (seed, 1))
        _write_json(new / FINGERPRINT_FILE, fingerprint)
        # Another process may have been as quick; its folder has the same bytes.
        if _fingerprint(root) != fingerprint:
            if root.exists():
                root.rename(Path(beside) / "old")
            new.rename(root)
            logger.info("Drew %d + %d images into %s", train_images, val_images, root)


def _fingerprint(root: Path) -> dict[str, Any] | None:
    """What a folder of ours was made from; None where there is nothing yet, else a ValueError."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return None
    try:
        return json.loads((root / FINGERPRINT_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        raise ValueError(
            f"{root} exists and was not made by data=shapes (it has no readable "
            f"{FINGERPRINT_FILE}), so it is not replaced. Choose another data.root, or move it "
            f"away; for your own data use data=coco or data=custom."
        ) from None


def _write_split(root: Path, split: str, num_images: int, seed: tuple[int, int]) -> None:
    """Draw the images of one split, of many on all cores, and write its annotation file."""
    (root / split).mkdir()
    draw = partial(_draw, folder=root / split, seed=seed)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    # Spawned, not forked: by now this process may have threads, and a fork can inherit their locks.
    spawn = multiprocessing.get_context("spawn")
    many = num_images >= FEWEST_FOR_PROCESSES
    with ProcessPoolExecutor(mp_context=spawn) if many else nullcontext() as pool:
        draw_all = partial(pool.map, chunksize=8) if many else map
        drawn = draw_all(draw, range(num_images))
        bar = {"total": num_images, "unit": "image", "leave": False, "dynamic_ncols": True}
        for image, objects in tqdm(drawn, f"drawing {split}", disable=not has_bar(), **bar):
            images.append(image)
            annotations += [{"id": len(annotations) + n, **one} for n, one in enumerate(objects, 1)]
    categories = zip(CATEGORY_IDS, NAMES, strict=True)
    content = {
        "info": {"description": "Drawn shapes, made by retinanet data=shapes", "version": VERSION},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": name, "supercategory": "shape"} for i, name in categories],
    }
    _write_json(root / "annotations" / f"instances_{split}.json", content)


def _draw(
    index: int, folder: Path, seed: tuple[int, int]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Draw and save one image; its record, and its annotations without their ids."""
    # One generator an image: neither the number of images nor that of processes changes one.
    pixels, objects = draw_image(np.random.default_rng([*seed, index]))
    image_id = FIRST_IDS[folder.name] + ID_STEP * index
    file_name = f"{image_id:012d}.jpg"
    Image.fromarray(pixels).save(folder / file_name, quality=QUALITY)
    annotations = []
    for drawn in objects:
        mask = run_lengths.encode(np.asfortranarray(drawn.mask, dtype=np.uint8))
        annotations.append(
            {
                "image_id": image_id,
                "category_id": CATEGORY_IDS[drawn.label],
                "bbox": run_lengths.toBbox(mask).tolist(),
                "area": int(drawn.mask.sum()),
                "segmentation": {"size": mask["size"], "counts": mask["counts"].decode("ascii")},
                "iscrowd": int(drawn.crowd),
            }
        )
    height, width = pixels.shape[:2]
    image = {"id": image_id, "file_name": file_name, "width": width, "height": height}
    return image, annotations


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")
