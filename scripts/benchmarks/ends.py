"""The two ends of the data's way: photos to batches, detections to COCO's numbers."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms import functional as TF

from retinanet.data.images import read_image
from retinanet.data.loader import padded_size
from retinanet.data.transforms import resize, resized_size
from retinanet.evaluation.detect import DetectionArrays, as_arrays, merge
from retinanet.fast.coco_eval import Objects, precision_recall
from retinanet.postprocess import Detections
from scripts.benchmarks.clock import Stage
from scripts.benchmarks.made_up import NUM_CLASSES

IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
BATCH = 4
# Of the made-up detections: best ones that count, share near an object, crowds among those.
MAX_DETS, HITS, CROWDS = (1, 10, 100), 0.3, 0.01
# Photos of a turn, at most.
PHOTOS = 16


def data_stage(photos: Path, side: int) -> Stage:
    """JPEG files read, flipped, resized and put into batches, on one core.

    torchvision's: its detection references (Pillow, float tensors), and the normalizing, resizing
    and batching that its models do. Ours stays in bytes; the model normalizes, which is a part of
    the training step.

    Raises:
        ValueError: too few photos.
    """
    paths = sorted(photos.glob("*.jpg"))[:PHOTOS]
    if len(paths) < BATCH:
        raise ValueError(f"{photos} holds {len(paths)} .jpg files; {BATCH} make a batch.")
    longest = round(side * 1333 / 800)
    groups = [paths[start : start + BATCH] for start in range(0, len(paths) - BATCH + 1, BATCH)]
    transform = GeneralizedRCNNTransform(side, longest, IMAGENET_MEAN, IMAGENET_STD)
    return Stage(
        f"data, {BATCH * len(groups)} photos to {side} px, one core",
        {
            "torchvision": _on_one_core(
                lambda: [transform([_their_photo(path) for path in group]) for group in groups]
            ),
            "retinanet": _on_one_core(
                lambda: [_our_batch(group, side, longest) for group in groups]
            ),
        },
    )


def _their_photo(path: Path) -> Tensor:
    with Image.open(path) as file:
        image = TF.pil_to_tensor(file.convert("RGB"))
    return TF.convert_image_dtype(TF.hflip(image), torch.float32)


def _our_batch(paths: Sequence[Path], side: int, longest: int) -> Tensor:
    images = [read_image(path) for path in paths]
    sizes = [resized_size(*image.shape[1:], side, longest) for image in images]
    H, W = padded_size(np.array(sizes).max(axis=0)).tolist()
    batch = torch.zeros(len(images), H, W, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    for row, image, (h, w) in zip(batch, images, sizes, strict=True):
        row[:, :h, :w] = resize(image, (h, w)).flip(-1)
    return batch


def _on_one_core(work: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        work()
        torch.set_num_threads(threads)

    return run


def evaluation_stage(
    num_images: int = 5000, num_objects: int = 36_886, num_detections: int = 500_000
) -> Stage:
    """Arrays to COCO's curves, of which its twelve numbers are means; val2017's size."""
    K, rng = NUM_CLASSES, np.random.default_rng(0)
    image, label = (
        np.sort(rng.integers(0, num_images, num_objects)),
        rng.integers(0, K, num_objects),
    )
    sides = np.exp(rng.uniform(2, 6, (num_objects, 2)))
    box = np.concatenate([rng.uniform(0, 400, (num_objects, 2)), sides], axis=1)
    truth = Objects(image, label, box, box[:, 2] * box[:, 3])
    crowd = rng.random(num_objects) < CROWDS
    # Each detection lies near an object; some are of its image and class.
    near, hit = rng.integers(0, num_objects, num_detections), rng.random(num_detections) < HITS
    box = box[near] * rng.uniform(0.85, 1.15, (num_detections, 4))
    found = Objects(
        np.where(hit, image[near], rng.integers(0, num_images, num_detections)),
        np.where(hit, label[near], rng.integers(0, K, num_detections)),
        box,
        box[:, 2] * box[:, 3],
    )
    scores = rng.random(num_detections)
    return Stage(
        f"COCO's curves of {num_detections} detections in {num_images} images",
        {
            "pycocotools": lambda: pycocotools_curves(
                truth, crowd, found, scores, num_images, K, MAX_DETS
            ),
            "retinanet": lambda: precision_recall(truth, crowd, found, scores, K, MAX_DETS),
        },
    )


def detections_stage(num_images: int = 5000, per_image: int = 100) -> Stage:
    """What post-processing leaves, to what an evaluator takes.

    torchvision's: one dict for each detection, as its detection references make them.
    """
    torch.manual_seed(0)
    images = [
        Detections(
            400 * torch.rand(per_image, 4),
            torch.rand(per_image).sort(descending=True).values,
            torch.randint(NUM_CLASSES, (per_image,)),
        )
        for _ in range(num_images)
    ]

    def theirs() -> list[dict]:
        rows = []
        for number, image in enumerate(images):
            x1, y1, x2, y2 = image.boxes.unbind(1)
            boxes = torch.stack([x1, y1, x2 - x1, y2 - y1], dim=1).tolist()
            columns = zip(image.labels.tolist(), boxes, image.scores.tolist(), strict=True)
            rows += [
                {"image_id": number, "category_id": label, "bbox": box, "score": score}
                for label, box, score in columns
            ]
        return rows

    def ours() -> DetectionArrays:
        parts = [
            as_arrays(images[start : start + BATCH], torch.arange(start, start + BATCH), per_image)
            for start in range(0, num_images, BATCH)
        ]
        return merge(parts)

    return Stage(
        f"{num_images * per_image} detections to the evaluator",
        {"lists of dicts": theirs, "retinanet": ours},
    )


def pycocotools_curves(
    truth: Objects,
    crowd: np.ndarray,
    found: Objects,
    scores: np.ndarray,
    num_images: int,
    num_classes: int,
    max_dets: Sequence[int],
) -> tuple[np.ndarray, np.ndarray]:
    """What precision_recall gives, from stock pycocotools, by way of the dicts that it takes."""
    no_crowd = np.zeros(len(scores), dtype=bool)
    with redirect_stdout(io.StringIO()):
        pair = []
        for objects, more in (
            (truth, {"iscrowd": crowd}),
            (found, {"iscrowd": no_crowd, "score": scores}),
        ):
            columns = {
                "id": range(1, len(objects.image) + 1),
                "image_id": objects.image.tolist(),
                "category_id": objects.label.tolist(),
                "bbox": objects.box.tolist(),
                "area": objects.area.tolist(),
            } | {name: column.tolist() for name, column in more.items()}
            coco = COCO()
            rows = zip(*columns.values(), strict=True)
            coco.dataset = {
                "images": [{"id": i} for i in range(num_images)],
                "categories": [{"id": k} for k in range(num_classes)],
                "annotations": [dict(zip(columns, row, strict=True)) for row in rows],
            }
            coco.createIndex()
            pair.append(coco)
        evaluator = COCOeval(*pair, iouType="bbox")
        evaluator.params.maxDets = list(max_dets)
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator.eval["precision"][..., -1], evaluator.eval["recall"]
