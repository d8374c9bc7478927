"""Which anchors make the class loss of a trained network: figure 4 of the paper, any checkpoint.

Sorted by their loss, the easy anchors first: what share of the whole loss do they add up to, for
positives and for background, and for several gamma? Beside it the share of the gradient that comes
from background. With several checkpoints of one run, the same over training time.

  python -m scripts.loss_shares runs/shapes/checkpoints/best.pt
  python -m scripts.loss_shares early.pt late.pt --gammas 0 2 --images 64
  python -m scripts.loss_shares theirs.pth -- data=coco data.root=/datasets/coco

What follows -- names the data, as for train.py; without it a checkpoint's own is taken. A run keeps
its last checkpoint and its best one: to follow a training, copy last.pt while it runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from retinanet import build
from retinanet.cli.main import composer
from retinanet.data.loader import BatchLoader, eval_plan
from retinanet.devices import choose_device
from retinanet.losses import focal_loss
from retinanet.matching import NEGATIVE, Matcher
from retinanet.terminal import has_bar
from retinanet.tools.report.style import COLORS, house_style, save_png
from retinanet.training.start import describe_source
from retinanet.weights.read import read_trained

from .command_line import exit_status, new_parser, split_settings

# The table says how much of the loss these shares of the anchors make: figure 4's readings.
HARDEST_POSITIVES = 0.2
HARDEST_BACKGROUND = 0.01
# Points of a drawn curve; more cannot be seen.
POINTS = 1000


class Shares(NamedTuple):
    """The class loss of every anchor of some images, for one gamma, and its gradient's origin."""

    gamma: float
    positives: Tensor  # (P,) ascending
    background: Tensor  # (N,) ascending
    background_gradient: tuple[float, ...]  # share of the sum of absolute gradients, by alpha


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, write the plot."""
    parser = new_parser("loss_shares", __doc__)
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
    return exit_status(lambda: measure(args, settings))


def measure(args: argparse.Namespace, settings: Sequence[str]) -> int:
    """Read the checkpoints one by one, print the table, write the plot."""
    shares: dict[str, list[Shares]] = {}
    for path in args.checkpoints:
        label, logits, labels = read_anchors(path, args.images, settings)
        shares[str(path) if label in shares else label] = [
            shares_of(logits, labels, args.alpha, gamma) for gamma in args.gammas
        ]
    print("\n".join(table(shares, args.alpha)))
    args.plot.parent.mkdir(parents=True, exist_ok=True)
    plot(args.plot, shares)
    print(f"\nplot: {args.plot}")
    return 0


@torch.no_grad()
def read_anchors(path: Path, num_images: int, typed: Sequence[str]) -> tuple[str, Tensor, Tensor]:
    """A checkpoint's name, its logits (M, K) and labels (M,) of all anchors that have a loss.

    Args:
        path: of a checkpoint, ours or another project's.
        num_images: of the validation set, at most.
        typed: settings that name the data; none: the checkpoint's own.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no checkpoint, data that nobody named, or no objects in these images.
    """
    state = read_trained(path)
    settings = build.recorded_settings(state)
    data_settings = settings.data
    if typed:
        with composer("train") as reader:
            data_settings = reader.command(list(typed)).settings.data
    elif data_settings.val_annotations is None:
        raise ValueError(
            f"{path} does not say which data it was validated on; name it after --, such as "
            f"-- data=coco data.root=/datasets/coco."
        )
    data = build.build_data(data_settings, "val")
    augment = build.build_augment(settings, train=False)
    plan = eval_plan(data, augment, batch_size=8, max_images=num_images)
    device = choose_device("auto")
    model = build.load_model(state, settings).to(device)
    matcher = Matcher(**state["settings"].get("matching", {}))
    logits, labels = [], []
    loader = BatchLoader(data, augment, plan)
    for batch in tqdm(loader, desc="loss", unit="batch", leave=False, disable=not has_bar()):
        batch = batch.to(device)
        predicted, _, anchors = model(batch.images, batch.sizes)  # (B, A, K)
        label = matcher(anchors, batch.boxes, batch.labels, batch.crowds).label  # (B, A)
        logits.append(predicted.float()[label >= NEGATIVE])
        labels.append(label[label >= NEGATIVE])
    logits, labels = torch.cat(logits), torch.cat(labels)
    if not (labels >= 0).any():
        raise ValueError(f"{path}: no positive anchor in {num_images} images; take more.")
    return describe_source(state), logits, labels


def shares_of(logits: Tensor, labels: Tensor, alphas: Sequence[float], gamma: float) -> Shares:
    """Losses and gradients of anchors under focal loss.

    Args:
        logits: (M, K).
        labels: (M,) class in [0, K), or negative for background.
        alphas: weights of positives. The gradients are for each; the losses, whose shares hardly
            depend on it, for the first.
        gamma: focusing exponent.
    """
    positive = labels >= 0
    is_class = labels[:, None] == torch.arange(logits.shape[1], device=labels.device)
    losses, gradients = [], []
    for alpha in alphas:
        logits = logits.detach().requires_grad_()
        losses.append(focal_loss(logits, is_class, alpha, gamma).sum(dim=1))  # (M,)
        (gradient,) = torch.autograd.grad(losses[-1].sum(), logits)
        gradient = gradient.abs().sum(dim=1)
        gradients.append((gradient[~positive].sum() / gradient.sum()).item())
    positives, background = (losses[0].detach()[side].sort() for side in (positive, ~positive))
    return Shares(gamma, positives.values.cpu(), background.values.cpu(), tuple(gradients))


def hardest_share(losses: Tensor, share: float) -> float:
    """What part of a sum the largest ``share`` of its items make; ``losses`` (M,) ascend."""
    losses = losses.double()
    return (losses[-max(1, round(share * len(losses))) :].sum() / losses.sum()).item()


def table(shares: dict[str, list[Shares]], alphas: Sequence[float]) -> list[str]:
    """Lines of a Markdown table: checkpoint -> its shares for each gamma."""
    columns = "".join(f" background's gradient, alpha {alpha:g} |" for alpha in alphas)
    lines = [
        f"| checkpoint | gamma | hardest {HARDEST_POSITIVES:.0%} of positives | hardest "
        f"{HARDEST_BACKGROUND:.0%} of background |{columns}",
        "| --- | ---: | ---: | ---: |" + " ---: |" * len(alphas),
    ]
    for label, row in ((label, row) for label, rows in shares.items() for row in rows):
        cells = [
            hardest_share(row.positives, HARDEST_POSITIVES),
            hardest_share(row.background, HARDEST_BACKGROUND),
            *row.background_gradient,
        ]
        lines.append(f"| {label} | {row.gamma:g} |" + "".join(f" {c:.0%} |" for c in cells))
    return lines


@house_style()
def plot(path: Path, shares: dict[str, list[Shares]]) -> None:
    """A row for each checkpoint, positives at the left, background at the right."""
    figure = Figure(figsize=(8, 3.4 * len(shares)), layout="constrained")
    grid = figure.subplots(len(shares), 2, squeeze=False)
    for row, (label, by_gamma) in zip(grid, shares.items(), strict=True):
        for axes, side in zip(row, ("positives", "background"), strict=True):
            for color, one in zip(COLORS, by_gamma, strict=False):
                axes.plot(*curve(getattr(one, side)), color=color, label=f"gamma {one.gamma:g}")
            axes.set(
                title=f"{label}: {side}",
                xlabel=f"share of {side}, the easy ones first",
                ylabel="share of their loss",
            )
        row[0].legend(loc="upper left")
    save_png(figure, path)


def curve(losses: Tensor) -> tuple[list[float], list[float]]:
    """Shares of the anchors and of the loss that they add up to, at most ``POINTS`` of each."""
    total = losses.double().cumsum(0)
    at = torch.linspace(0, len(losses) - 1, min(POINTS, len(losses))).round().long()
    return ((at + 1) / len(losses)).tolist(), (total[at] / total[-1]).tolist()


if __name__ == "__main__":
    sys.exit(main())
