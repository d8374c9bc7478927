"""Who makes the class loss of a trained network: figure 4 of the paper, from any checkpoint.

Sorted by their loss, the easy anchors first: what share of the whole loss do they add up to, for
positives and for background, and for several gamma? Beside it the share of the gradient that comes
from background. With several checkpoints of one run, the same over training time.

  python -m scripts.loss_shares runs/shapes/checkpoints/best.pt
  python -m scripts.loss_shares early.pt late.pt --gammas 0 2 --images 64
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from retinanet import build
from retinanet.atomic import write_whole
from retinanet.cli.command import MISTAKES, complain
from retinanet.data.batches import eval_plan, make_loader
from retinanet.detector import load_model, recorded_settings
from retinanet.devices import choose_device
from retinanet.evaluation.plots import COLORS, house_style
from retinanet.exchange.read import read_trained
from retinanet.losses import focal_loss
from retinanet.matching import NEGATIVE, Matcher
from retinanet.training.transfer import describe_source

# Of these anchors the table says how much of the loss they make: figure 4's readings.
HARDEST_POSITIVES = 0.2
HARDEST_BACKGROUND = 0.01
# Points of a drawn curve; more cannot be seen.
POINTS = 1000


@dataclass(frozen=True, slots=True)
class Shares:
    """The class loss of every anchor of some images, for one gamma, and whose gradient it is."""

    gamma: float
    positives: Tensor  # (P,) ascending
    background: Tensor  # (N,) ascending
    background_gradient: float  # share of the sum of absolute gradients


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, write the plot."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.loss_shares",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoints", type=Path, nargs="+", help="of train.py")
    parser.add_argument("--gammas", type=float, nargs="+", default=[0.0, 0.5, 1.0, 2.0])
    parser.add_argument(
        "--alpha", type=float, default=0.25, help="for the gradients (default: %(default)s)"
    )
    parser.add_argument("--images", type=int, default=32, help="default: %(default)s")
    parser.add_argument("--plot", type=Path, default=Path("runs/loss_shares.png"))
    args = parser.parse_args(arguments)
    if args.images < 1 or min(args.gammas) < 0 or not 0 <= args.alpha <= 1:
        parser.error("give at least one image, gammas of at least 0, and alpha in [0, 1]")
    found: dict[str, list[Shares]] = {}
    try:
        for path in args.checkpoints:
            label, shares = shares_of(path, args.gammas, args.alpha, args.images)
            found[str(path) if label in found else label] = shares
    except MISTAKES as error:
        complain(error)
        return 1
    print("\n".join(table(found)))
    args.plot.parent.mkdir(parents=True, exist_ok=True)
    write_whole(args.plot, plot(found))
    print(f"\nplot: {args.plot}")
    return 0


def shares_of(
    path: Path, gammas: Sequence[float], alpha: float, num_images: int
) -> tuple[str, list[Shares]]:
    """What a checkpoint is called, and its losses on the first images of its validation set.

    Args:
        path: of a checkpoint that says which data it was validated on.
        gammas: focusing exponents.
        alpha: weight of y = 1; it scales the curves of a side as a whole, and weighs the sides.
        num_images: how many at most.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no checkpoint, or no objects in these images.
    """
    state = read_trained(path)
    logits, labels = [], []
    for one, label in _predictions(state, num_images):
        counted = label >= NEGATIVE
        logits.append(one[counted])
        labels.append(label[counted])
    logits, labels = torch.cat(logits), torch.cat(labels)  # (M, K), (M,)
    if not (labels >= 0).any():
        raise ValueError(f"{path}: no positive anchor in {num_images} images; take more.")
    return describe_source(state), [_shares(logits, labels, alpha, gamma) for gamma in gammas]


@torch.no_grad()
def _predictions(state: dict[str, Any], num_images: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits (B, A, K) and labels (B, A) of batch after batch."""
    device = choose_device("auto")
    settings = recorded_settings(state)
    data = build.build_data(settings.data, "val")
    model = load_model(state, settings).to(device)
    matcher = Matcher(**state["settings"].get("matching", {}))
    augment = build.build_augment(settings, train=False)
    plan = eval_plan(data, augment, batch_size=8, max_images=num_images)
    loader = make_loader(
        data, augment, plan, seed=0, workers=0, on_bad_image="stop", pin_memory=False
    )
    for batch in tqdm(loader, desc=describe_source(state), unit="batch", leave=False):
        batch = batch.to(device)
        logits, _, anchors = model(batch.images, batch.sizes)
        yield logits.float(), matcher(anchors, batch.boxes, batch.labels, batch.crowds).label


def _shares(logits: Tensor, labels: Tensor, alpha: float, gamma: float) -> Shares:
    logits = logits.clone().requires_grad_()
    is_class = labels[:, None] == torch.arange(logits.shape[1], device=labels.device)
    loss = focal_loss(logits, is_class, alpha, gamma).sum(dim=1)  # (M,)
    loss.sum().backward()
    gradient = logits.grad.abs().sum(dim=1)
    positive = labels >= 0
    loss = loss.detach()
    return Shares(
        gamma,
        loss[positive].sort().values.cpu(),
        loss[~positive].sort().values.cpu(),
        (gradient[~positive].sum() / gradient.sum()).item(),
    )


def hardest_share(losses: Tensor, share: float) -> float:
    """What part of a sum the largest ``share`` of its items make; ``losses`` (M,) ascend."""
    losses = losses.double()
    return (losses[-max(1, round(share * len(losses))) :].sum() / losses.sum()).item()


def table(found: dict[str, list[Shares]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = [
        f"| checkpoint | gamma | hardest {HARDEST_POSITIVES:.0%} of positives | hardest "
        f"{HARDEST_BACKGROUND:.0%} of background | background's gradient |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for label, shares in found.items():
        for one in shares:
            lines.append(
                f"| {label} | {one.gamma:g} "
                f"| {hardest_share(one.positives, HARDEST_POSITIVES):.0%} "
                f"| {hardest_share(one.background, HARDEST_BACKGROUND):.0%} "
                f"| {one.background_gradient:.0%} |"
            )
    return lines


def plot(found: dict[str, list[Shares]]) -> bytes:
    """PNG: a row for each checkpoint, positives at the left, background at the right."""
    with house_style():
        figure = Figure(figsize=(8, 3.4 * len(found)), layout="constrained")
        grid = figure.subplots(len(found), 2, squeeze=False)
        for row, (label, shares) in zip(grid, found.items(), strict=True):
            for axes, side in zip(row, ("positives", "background"), strict=True):
                for color, one in zip(COLORS, shares, strict=False):
                    x, y = _curve(getattr(one, side))
                    axes.plot(x, y, color=color, label=f"gamma {one.gamma:g}")
                axes.set(
                    title=f"{label}: {side}",
                    xlabel=f"share of {side}, the easy ones first",
                    ylabel="share of their loss",
                )
            row[0].legend(loc="upper left")
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=150)
    return picture.getvalue()


def _curve(losses: Tensor) -> tuple[list[float], list[float]]:
    """Shares of the anchors and of the loss that they add up to."""
    total = losses.double().cumsum(0)
    at = torch.linspace(0, len(losses) - 1, min(POINTS, len(losses))).round().long()
    return ((at + 1) / len(losses)).tolist(), (total[at] / total[-1]).tolist()


if __name__ == "__main__":
    sys.exit(main())
