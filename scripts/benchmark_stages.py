"""The stages of scripts/benchmark.py: the same work by this package and by its peers."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet
from torchvision.models.detection._utils import Matcher as TorchvisionMatcher
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.retinanet import RetinaNetClassificationHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FrozenBatchNorm2d, box_iou
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from torchvision.transforms import functional as TF

from retinanet import build
from retinanet.build import load_model, recorded_settings
from retinanet.cli.main import composer
from retinanet.data.images import read_image
from retinanet.data.loader import Batch, padded_size
from retinanet.data.transforms import resize, resized_size
from retinanet.devices import autocast
from retinanet.evaluation.average_precision import pycocotools_curves
from retinanet.evaluation.detect import DetectionArrays, as_arrays, merge
from retinanet.fast.coco_eval import Objects, precision_recall
from retinanet.fast.focal import focal_loss_sum
from retinanet.fast.fold_batchnorm import for_inference
from retinanet.matching import IGNORED, NEGATIVE, Matcher
from retinanet.model.anchors import AnchorGenerator, grid_sizes
from retinanet.model.retinanet import RetinaNet
from retinanet.postprocess import Detections, Postprocess
from retinanet.training.trainer import Trainer
from retinanet.weights.read import read_trained

COCO_SIZE = (800, 1344)
NUM_ANCHORS = 201_600  # of that size
NUM_CLASSES = 80
# Anchors of each image that are matched, a usual number on COCO.
POSITIVES = 60
PRECISIONS = ("fp32", "bf16")
# torchvision at its best, one line away from what it does by itself.
BEST = "torchvision bf16, channels last"
LR = 1e-6  # so small that the weights stay as they are
IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
BATCH = 4
MOST_FILES = 16  # of the stage data
# Of the synthetic detections: best ones that count, share near an object, crowds among those.
MAX_DETS, HITS, CROWDS = (1, 10, 100), 0.3, 0.01


class Stage(NamedTuple):
    """Work that several contestants can do."""

    name: str
    contestants: dict[str, Callable[[], object]]  # the peer first
    device: torch.device = torch.device("cpu")
    images: int | None = None  # of one turn
    errors: Mapping[str, float] = {}  # of each contestant's loss, relative to its fp32


def stages(name: str, device: torch.device, folder: Path | None) -> Iterator[Stage]:
    """The stages that a name of the command line stands for, each made when its turn comes."""
    whole = partial(training_step, device=device)
    make = {
        "loss": [partial(focal_loss, dtype, device) for dtype in (torch.float32, torch.bfloat16)],
        "matching": [partial(matching, num_boxes, device) for num_boxes in (1, 5, 50, 300)],
        "postprocess": [partial(postprocess, crowded, device) for crowded in (False, True)],
        "step": [partial(whole, "resnet50", 512, 512, 2), partial(whole, "resnet18", 256, 320, 4)],
        "coco-step": [partial(whole, "resnet50", *COCO_SIZE, 2)],
        "inference": [partial(inference, 512, 512, device)],
        "data": [partial(batches, folder, side) for side in (800, 320)],
        "detections": [detections],
        "evaluation": [evaluation],
    }
    yield from (one() for one in make[name])


# What follows the network


def focal_loss(dtype: torch.dtype, device: torch.device) -> Stage:
    """Forward and backward of two images' logits, torchvision's as its RetinaNet does it."""
    A = NUM_ANCHORS
    torch.manual_seed(0)
    logits = (torch.randn(2, A, NUM_CLASSES) - 4.6).to(device, dtype).requires_grad_()
    label = torch.full((2, A), NEGATIVE)
    label[:, torch.randperm(A)[: 2 * POSITIVES]] = IGNORED
    label[:, torch.randperm(A)[:POSITIVES]] = torch.randint(NUM_CLASSES, (POSITIVES,))
    label, alpha = label.to(device), torch.tensor(0.25, device=device)
    compute_loss = RetinaNetClassificationHead(1, 1, NUM_CLASSES).compute_loss
    # It looks up classes of matched objects; here object i has class i.
    targets = [{"labels": torch.arange(NUM_CLASSES, device=device)}] * 2

    def our_loss() -> Tensor:
        num_positives = (label >= 0).sum(dim=1, keepdim=True).clamp(min=1)  # (2, 1)
        weight = (label >= NEGATIVE) / (len(label) * num_positives)
        return focal_loss_sum(logits, label, weight, alpha, 2.0)

    def gradient_of(loss: Callable[[], Tensor]) -> Tensor:
        loss().backward()
        gradient, logits.grad = logits.grad, None
        return gradient

    return Stage(
        f"focal loss, forward and backward, {2 * A} x {NUM_CLASSES}, {str(dtype)[6:]}",
        {
            "torchvision": lambda: gradient_of(
                lambda: compute_loss(targets, {"cls_logits": logits}, label)
            ),
            "retinanet": lambda: gradient_of(our_loss),
        },
        device,
    )


def matching(num_boxes: int, device: torch.device) -> Stage:
    """One image of COCO's size: overlaps, thresholds, best anchors of each box."""
    generator = AnchorGenerator()
    anchors = generator(*COCO_SIZE, device)
    boxes = some_boxes(*COCO_SIZE, num_boxes).to(device)
    labels = torch.zeros(1, num_boxes, dtype=torch.int64, device=device)
    crowds = torch.zeros(1, 0, 4, device=device)
    peer, matcher = TorchvisionMatcher(0.5, 0.4, allow_low_quality_matches=True), Matcher()
    windows = generator.windows(*COCO_SIZE)
    contestants = {
        "torchvision": lambda: peer(box_iou(boxes, anchors)),
        "retinanet": lambda: matcher(anchors, boxes[None], labels, crowds, windows),
    }
    return Stage(f"matching, {len(anchors)} anchors, {num_boxes} boxes", contestants, device)


def postprocess(crowded: bool, device: torch.device) -> Stage:
    """One image of COCO's size, from outputs to detections."""
    torch.manual_seed(0)
    model = torchvision_model("resnet18", *COCO_SIZE).eval()
    generator = AnchorGenerator()
    anchors = generator(*COCO_SIZE, device)
    logits = torch.randn(1, len(anchors), NUM_CLASSES) * (0.9 if crowded else 0.6) - 5.5
    hot = torch.randperm(len(anchors))[: 4000 if crowded else 200]
    logits[0, hot, torch.randint(NUM_CLASSES, hot.shape)] += 5
    logits, deltas = logits.to(device), 0.1 * torch.randn(1, len(anchors), 4).to(device)
    sizes = [h * w * generator.num_per_cell for h, w in grid_sizes(*COCO_SIZE)]
    outputs = {"cls_logits": logits.split(sizes, 1), "bbox_regression": deltas.split(sizes, 1)}
    levels = [list(anchors.split(sizes))]
    ours = Postprocess(detections=model.detections_per_img)
    valid = torch.tensor([COCO_SIZE], device=device)
    run = torch.inference_mode()
    contestants = {
        "torchvision": run(lambda: model.postprocess_detections(outputs, levels, [COCO_SIZE])),
        "retinanet": run(lambda: ours(logits, deltas, anchors, valid, sizes)),
    }
    return Stage(f"postprocess, {'crowded' if crowded else 'typical'}", contestants, device)


# The whole network


def training_step(
    backbone: str, height: int, width: int, num_images: int, device: torch.device
) -> Stage:
    """Forward, loss, backward, SGD, of images that have their size already."""
    theirs = torchvision_model(backbone, height, width).train()
    batch = some_batch(height, width, num_images)
    trainers = {name: _trainer(theirs, name, device) for name in PRECISIONS}
    if device.type == "cuda":  # on CPUs compilation does not pay for training
        trainers["bf16 compiled"] = _trainer(theirs, "bf16", device, compiled=True)
    theirs.to(device)
    images = [image.float().to(device) / 255 for image in batch.images.contiguous()]
    targets = [
        {"boxes": boxes.to(device), "labels": labels.to(device)}
        for boxes, labels in zip(batch.boxes, batch.labels, strict=True)
    ]

    def their_loss(model: nn.Module, precision: str) -> Tensor:
        with autocast(device, precision):
            return sum(model(images, targets).values())

    def their_step(model: nn.Module, precision: str, optimizer: torch.optim.Optimizer) -> None:
        # As torchvision's references/detection/engine.py.
        loss = their_loss(model, precision)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def our_loss(trainer: Trainer) -> Tensor:
        there = batch.to(trainer.device)
        match = trainer.match(there)
        (divisor,) = trainer.loss.divisors([match])
        return sum(trainer.forward_losses(there, match, divisor).values())

    # How far the loss in another precision is from the loss in fp32, of each project.
    errors = {}
    with torch.no_grad():
        exact = their_loss(theirs, "fp32"), our_loss(trainers["fp32"])
        for name in PRECISIONS:
            losses = their_loss(theirs, name), our_loss(trainers[name])
            for peer, loss, full in zip(("torchvision", "retinanet"), losses, exact, strict=True):
                errors[f"{peer} {name}"] = abs(float(loss / full) - 1)
    models = {f"torchvision {precision}": (theirs, precision) for precision in PRECISIONS}
    models[BEST] = copy.deepcopy(theirs).to(memory_format=torch.channels_last), "bf16"
    contestants = {}
    for name, (model, precision) in models.items():
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=LR, momentum=0.9, weight_decay=1e-4)
        contestants[name] = partial(their_step, model, precision, optimizer)
    for name, trainer in trainers.items():
        contestants[f"retinanet {name}"] = partial(trainer.one_step, [batch])
    return Stage(
        f"training step, {backbone}, {height} x {width}, batch {num_images}",
        contestants,
        device,
        images=num_images,
        errors=errors,
    )


def _trainer(
    theirs: nn.Module, precision: str, device: torch.device, *, compiled: bool = False
) -> Trainer:
    """The trainer of ``train.py`` on a model with the weights of torchvision's."""
    typed = ["data=coco", "optim=sgd", f"optim.lr={LR}", "optim.max_grad_norm=null", "ema=none"]
    typed += ["loss.normalizer=image", f"precision={precision}", f"compile={compiled}"]
    with composer("train") as reader:
        settings = reader.command(typed).settings
    names = [str(label) for label in range(NUM_CLASSES)]
    model = same_model(theirs)
    trainer = build.build_trainer(settings, model, names, total_steps=10**6, device=device)
    trainer.network.train()
    return trainer


def inference(height: int, width: int, device: torch.device) -> Stage:
    """The network and what follows, one image."""
    theirs = torchvision_model("resnet50", height, width).eval()
    ours = same_model(theirs).to(device)
    theirs.to(device)
    batch = some_batch(height, width, 1).to(device)
    image = batch.images[0].contiguous().float() / 255
    levels, to_detections = ours.level_sizes(height, width), Postprocess()

    def run_theirs(model: nn.Module, precision: str) -> None:
        with torch.inference_mode(), autocast(device, precision):
            model([image])

    def run_ours(network: RetinaNet, precision: str) -> None:
        with torch.inference_mode():
            with autocast(device, precision):
                logits, deltas, anchors = network(batch.images, batch.sizes)
            to_detections(logits, deltas, anchors, batch.sizes, levels)

    contestants = {f"torchvision {name}": partial(run_theirs, theirs, name) for name in PRECISIONS}
    last = copy.deepcopy(theirs).to(memory_format=torch.channels_last)
    contestants[BEST] = partial(run_theirs, last, "bf16")
    for name in (*PRECISIONS, "bf16 compiled"):
        precision = name.split()[0]
        network = for_inference(ours, precision, compiled=name != precision)
        contestants[f"retinanet {name}"] = partial(run_ours, network, precision)
    return Stage(
        f"inference, resnet50, {height} x {width}",
        contestants,
        device,
        images=1,
    )


# Image files to batches, detections to COCO's numbers


def batches(folder: Path, side: int) -> Stage:
    """JPEG files read, flipped, resized and put into batches, on one core.

    torchvision's: its detection references (Pillow, float tensors), and the normalizing, resizing
    and batching that its models do. Ours stays in bytes; the model normalizes, which is a part of
    the training step.

    Raises:
        ValueError: too few files.
    """
    paths = sorted(folder.glob("*.jpg"))[:MOST_FILES]
    if len(paths) < BATCH:
        raise ValueError(f"{folder} holds {len(paths)} .jpg files; {BATCH} make a batch.")
    longest = round(side * 1333 / 800)
    groups = [paths[start : start + BATCH] for start in range(0, len(paths) - BATCH + 1, BATCH)]
    transform = GeneralizedRCNNTransform(side, longest, IMAGENET_MEAN, IMAGENET_STD)

    def their_image(path: Path) -> Tensor:
        with Image.open(path) as file:
            image = TF.pil_to_tensor(file.convert("RGB"))
        return TF.convert_image_dtype(TF.hflip(image), torch.float32)

    def our_batch(paths: Sequence[Path]) -> Tensor:
        images = [read_image(path) for path in paths]
        sizes = [resized_size(*image.shape[1:], side, longest) for image in images]
        H, W = padded_size(np.array(sizes).max(axis=0)).tolist()
        batch = torch.zeros(len(images), H, W, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
        for row, image, (h, w) in zip(batch, images, sizes, strict=True):
            row[:, :h, :w] = resize(image, (h, w)).flip(-1)
        return batch

    def on_one_core(work: Callable[[Sequence[Path]], object]) -> None:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        for group in groups:
            work(group)
        torch.set_num_threads(threads)

    return Stage(
        f"data, {BATCH * len(groups)} photos to {side} px, one core",
        {
            "torchvision": lambda: on_one_core(lambda group: transform([*map(their_image, group)])),
            "retinanet": lambda: on_one_core(our_batch),
        },
    )


def evaluation(
    num_images: int = 5000, num_objects: int = 36_886, num_detections: int = 500_000
) -> Stage:
    """Arrays to COCO's curves, of which its twelve numbers are means; val2017's size."""
    K, rng = NUM_CLASSES, np.random.default_rng(0)

    def objects(image: np.ndarray, label: np.ndarray, box: np.ndarray) -> Objects:
        return Objects(image, label, box, box[:, 2] * box[:, 3])

    image = np.sort(rng.integers(0, num_images, num_objects))
    label = rng.integers(0, K, num_objects)
    sides = np.exp(rng.uniform(2, 6, (num_objects, 2)))
    box = np.concatenate([rng.uniform(0, 400, (num_objects, 2)), sides], axis=1)
    ground_truth, crowd = objects(image, label, box), rng.random(num_objects) < CROWDS
    # Each detection lies near an object; some are of its image and class.
    near, hit = rng.integers(0, num_objects, num_detections), rng.random(num_detections) < HITS
    shaken = box[near] * rng.uniform(0.85, 1.15, (num_detections, 4))
    detected = objects(
        np.where(hit, image[near], rng.integers(0, num_images, num_detections)),
        np.where(hit, label[near], rng.integers(0, K, num_detections)),
        shaken,
    )
    scores = rng.random(num_detections)
    given = (ground_truth, crowd, detected, scores)
    return Stage(
        f"COCO's curves of {num_detections} detections in {num_images} images",
        {
            "pycocotools": lambda: pycocotools_curves(*given, num_images, K, MAX_DETS),
            "retinanet": lambda: precision_recall(*given, K, MAX_DETS),
        },
    )


def detections(num_images: int = 5000, per_image: int = 100) -> Stage:
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
        return merge(
            [
                as_arrays(images[i : i + BATCH], torch.arange(i, i + BATCH), per_image)
                for i in range(0, num_images, BATCH)
            ]
        )

    return Stage(
        f"{num_images * per_image} detections to the evaluator",
        {"lists of dicts": theirs, "retinanet": ours},
    )


# What every contestant gets


def torchvision_model(backbone: str, height: int, width: int) -> TorchvisionRetinaNet:
    """torchvision's RetinaNet with frozen norms and weights that do not explode."""
    torch.manual_seed(0)
    resnet = torchvision.models.get_model(backbone, norm_layer=FrozenBatchNorm2d)
    last = "bn2" if backbone in ("resnet18", "resnet34") else "bn3"
    for name, module in resnet.named_modules():
        if name.endswith(last):
            module.weight.fill_(0.2)
    extra = LastLevelP6P7(256, 256)
    body = _resnet_fpn_extractor(resnet, 3, returned_layers=[2, 3, 4], extra_blocks=extra)
    return TorchvisionRetinaNet(body, NUM_CLASSES, min_size=height, max_size=width)


def same_model(theirs: nn.Module) -> RetinaNet:
    """Ours with the same weights, by way of a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "torchvision.pth"
        torch.save(theirs.state_dict(), path)
        state = read_trained(path)
    model = load_model(state, recorded_settings(state))
    model.backbone.freeze(2)
    return model


def some_batch(height: int, width: int, num_images: int, num_boxes: int = 8) -> Batch:
    """Noise with boxes of all sizes."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (num_images, 3, height, width), generator=generator)
    boxes = some_boxes(height, width, num_images * num_boxes).view(num_images, num_boxes, 4)
    sizes = torch.tensor([[height, width]] * num_images)
    return Batch(
        images=images.byte().contiguous(memory_format=torch.channels_last),
        sizes=sizes,
        boxes=boxes,
        labels=torch.randint(NUM_CLASSES, boxes.shape[:2], generator=generator),
        crowds=torch.zeros(num_images, 0, 4),
        image_ids=torch.arange(num_images),
        original_sizes=sizes,
    )


def some_boxes(height: int, width: int, count: int) -> Tensor:
    """(count, 4) boxes with sides of 5 to 500 pixels, log-uniform."""
    generator = torch.Generator().manual_seed(1)
    limit = torch.tensor([width, height])
    center = torch.rand(count, 2, generator=generator) * limit
    side = 5 * 100 ** torch.rand(count, 2, generator=generator)
    low = (center - side / 2).clamp(min=0)
    high = torch.maximum((center + side / 2).minimum(limit.float()), low + 2)
    return torch.cat([low, high], dim=1)
