"""Who makes the class loss of a trained network: figure 4 of the paper, from any checkpoint.

Sorted by their loss, the easy anchors first: what share of the whole loss do they add up to, for
positives and for background, and for several gamma? Beside it the share of the gradient that comes
from background. With several checkpoints of one run, the same over training time.

  python -m scripts.loss_shares runs/shapes/checkpoints/best.pt
  python -m scripts.loss_shares early.pt late.pt --gammas 0 2 --images 64
  python -m scripts.loss_shares theirs.pth -- data=coco data.root=/datasets/coco

What follows -- names the data, as for train.py; without it a checkpoint's own is taken. A run keeps
its last checkpoint and its best one: for the course of a training copy last.pt while it goes on.
"""

from __future__ import annotations

import argparse
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
from retinanet.cli.command import MISTAKES, complain
from retinanet.cli.main import composer
from retinanet.data.loader import BatchLoader, eval_plan
from retinanet.devices import choose_device
from retinanet.losses import focal_loss
from retinanet.matching import NEGATIVE, Matcher
from retinanet.terminal import has_bar
from retinanet.tools.report.style import COLORS, house_style, save_png
from retinanet.trained import load_model, recorded_settings
from retinanet.training.transfer import describe_source
from retinanet.weights.read import read_trained
from scripts.settings import split_settings

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
    background_gradient: tuple[float, ...]  # share of the sum of absolute gradients, by alpha


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
        "--alpha",
        type=float,
        nargs="+",
        default=[0.25],
        help="of the gradients, one column each (default: 0.25)",
    )
    parser.add_argument("--images", type=int, default=32, help="default: %(default)s")
    parser.add_argument("--plot", type=Path, default=Path("runs/loss_shares.png"))
    options, settings = split_settings(arguments)
    args = parser.parse_args(options)
    if args.images < 1 or min(args.gammas) < 0 or not 0 <= min(args.alpha) <= max(args.alpha) <= 1:
        parser.error("give at least one image, gammas of at least 0, and alpha in [0, 1]")
    if len(args.gammas) > len(COLORS):
        parser.error(f"give at most {len(COLORS)} gammas; more curves cannot be told apart")
    found: dict[str, list[Shares]] = {}
    try:
        for path in args.checkpoints:
            label, shares = shares_of(path, args.gammas, args.alpha, args.images, settings)
            found[str(path) if label in found else label] = shares
    except MISTAKES as error:
        complain(error)
        return 1
    print("\n".join(table(found, args.alpha)))
    args.plot.parent.mkdir(parents=True, exist_ok=True)
    plot(args.plot, found)
    print(f"\nplot: {args.plot}")
    return 0


def shares_of(
    path: Path,
    gammas: Sequence[float],
    alphas: Sequence[float],
    num_images: int,
    typed: Sequence[str] = (),
) -> tuple[str, list[Shares]]:
    """What a checkpoint is called, and its losses on the first images of its validation set.

    Args:
        path: of a checkpoint, ours or another project's.
        gammas: focusing exponents.
        alphas: weights of y = 1. The gradients are for each; the losses, whose shares hardly
            depend on it, for the first.
        num_images: how many at most.
        typed: settings that name the data; none: the checkpoint's own.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no checkpoint, or no objects in these images.
    """
    state = read_trained(path)
    logits, labels = [], []
    if not typed and state["settings"]["data"]["val_annotations"] is None:
        raise ValueError(
            f"{path} does not say which data it was validated on; name it after --, such as "
            f"-- data=coco data.root=/datasets/coco."
        )
    for one, label in _predictions(state, num_images, typed):
        counted = label >= NEGATIVE
        logits.append(one[counted])
        labels.append(label[counted])
    logits, labels = torch.cat(logits), torch.cat(labels)  # (M, K), (M,)
    if not (labels >= 0).any():
        raise ValueError(f"{path}: no positive anchor in {num_images} images; take more.")
    return describe_source(state), [_shares(logits, labels, alphas, gamma) for gamma in gammas]


@torch.no_grad()
def _predictions(
    state: dict[str, Any], num_images: int, typed: Sequence[str]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits (B, A, K) and labels (B, A) of batch after batch."""
    device = choose_device("auto")
    settings = recorded_settings(state)
    named = settings
    if typed:
        with composer("train") as reader:
            named = reader.command(list(typed)).settings
    data = build.build_data(named.data, "val")
    model = load_model(state, settings).to(device)
    matcher = Matcher(**state["settings"].get("matching", {}))
    augment = build.build_augment(settings, train=False)
    plan = eval_plan(data, augment, batch_size=8, max_images=num_images)
    loader = BatchLoader(
        data, augment, plan, seed=0, workers=0, on_bad_image="stop", pin_memory=False
    )
    for batch in tqdm(loader, desc="loss", unit="batch", leave=False, disable=not has_bar()):
        batch = batch.to(device)
        logits, _, anchors = model(batch.images, batch.sizes)
        yield logits.float(), matcher(anchors, batch.boxes, batch.labels, batch.crowds).label


def _shares(logits: Tensor, labels: Tensor, alphas: Sequence[float], gamma: float) -> Shares:
    positive = labels >= 0
    is_class = labels[:, None] == torch.arange(logits.shape[1], device=labels.device)
    losses, shares = [], []
    for alpha in alphas:
        logits = logits.detach().requires_grad_()
        losses.append(focal_loss(logits, is_class, alpha, gamma).sum(dim=1))  # (M,)
        (gradient,) = torch.autograd.grad(losses[-1].sum(), logits)
        gradient = gradient.abs().sum(dim=1)
        shares.append((gradient[~positive].sum() / gradient.sum()).item())
    loss = losses[0].detach()
    return Shares(
        gamma,
        loss[positive].sort().values.cpu(),
        loss[~positive].sort().values.cpu(),
        tuple(shares),
    )


def hardest_share(losses: Tensor, share: float) -> float:
    """What part of a sum the largest ``share`` of its items make; ``losses`` (M,) ascend."""
    losses = losses.double()
    return (losses[-max(1, round(share * len(losses))) :].sum() / losses.sum()).item()


def table(found: dict[str, list[Shares]], alphas: Sequence[float]) -> list[str]:
    """Lines of a Markdown table."""
    columns = "".join(f" background's gradient, alpha {alpha:g} |" for alpha in alphas)
    lines = [
        f"| checkpoint | gamma | hardest {HARDEST_POSITIVES:.0%} of positives | hardest "
        f"{HARDEST_BACKGROUND:.0%} of background |{columns}",
        "| --- | ---: | ---: | ---: |" + " ---: |" * len(alphas),
    ]
    for label, shares in found.items():
        for one in shares:
            lines.append(
                f"| {label} | {one.gamma:g} "
                f"| {hardest_share(one.positives, HARDEST_POSITIVES):.0%} "
                f"| {hardest_share(one.background, HARDEST_BACKGROUND):.0%} |"
                + "".join(f" {share:.0%} |" for share in one.background_gradient)
            )
    return lines


def plot(path: Path, found: dict[str, list[Shares]]) -> None:
    """A row for each checkpoint, positives at the left, background at the right."""
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
        save_png(figure, path)


def _curve(losses: Tensor) -> tuple[list[float], list[float]]:
    """Shares of the anchors and of the loss that they add up to."""
    total = losses.double().cumsum(0)
    at = torch.linspace(0, len(losses) - 1, min(POINTS, len(losses))).round().long()
    return ((at + 1) / len(losses)).tolist(), (total[at] / total[-1]).tolist()


if __name__ == "__main__":
    sys.exit(main())
