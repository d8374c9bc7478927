"""The paper's experiments as settings of train.py, with the AP that the paper found on COCO."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Variant:
    """One row of a table."""

    label: str
    settings: tuple[str, ...]
    paper: float | None  # AP in percent, COCO; None: the paper has no such row


@dataclass(frozen=True, slots=True)
class Experiment:
    """One table."""

    title: str
    paper: str  # what the paper trained for it
    variants: tuple[Variant, ...]


def _alpha(alpha: float, paper: float) -> Variant:
    return Variant(f"CE, alpha {alpha:g}", (f"loss.alpha={alpha:g}", "loss.gamma=0"), paper)


def _gamma(gamma: float, alpha: float, paper: float) -> Variant:
    settings = (f"loss.alpha={alpha:g}", f"loss.gamma={gamma:g}")
    return Variant(f"gamma {gamma:g}, alpha {alpha:g}", settings, paper)


def _anchors(scales: int, ratios: int, paper: float) -> Variant:
    values = ",".join(f"{2 ** (i / scales):.10g}" for i in range(scales))
    shapes = "0.5,1.0,2.0" if ratios == 3 else "1.0"
    settings = (f"anchors.scales=[{values}]", f"anchors.ratios=[{shapes}]")
    return Variant(f"{scales} scales, {ratios} ratios", settings, paper)


def _ohem(anchors: int, nms_iou: float, paper: float, ratio: int | None = None) -> Variant:
    settings = ("loss=ohem", f"loss.ohem_anchors={anchors}", f"loss.ohem_nms_iou={nms_iou:g}")
    label = f"OHEM {anchors}, NMS {nms_iou:g}"
    if ratio is not None:
        settings, label = (*settings, f"loss.ohem_ratio={ratio}"), f"{label}, 1:{ratio}"
    return Variant(label, settings, paper)


FOCAL = ("loss.alpha=0.25", "loss.gamma=2")
CROSS_ENTROPY = ("loss.alpha=0.75", "loss.gamma=0")

EXPERIMENTS = {
    "alpha": Experiment(
        "Cross entropy with alpha",
        "table 1a: R50, 600 px",
        (
            _alpha(0.1, 0.0),
            _alpha(0.25, 10.8),
            _alpha(0.5, 30.2),
            _alpha(0.75, 31.1),
            _alpha(0.9, 30.8),
            _alpha(0.99, 28.7),
            _alpha(0.999, 25.1),
        ),
    ),
    "gamma": Experiment(
        "Focal loss, each gamma with its best alpha",
        "table 1b: R50, 600 px",
        (
            _gamma(0, 0.75, 31.1),
            _gamma(0.1, 0.75, 31.4),
            _gamma(0.2, 0.75, 31.9),
            _gamma(0.5, 0.5, 32.9),
            _gamma(1, 0.25, 33.7),
            _gamma(2, 0.25, 34.0),
            _gamma(5, 0.25, 32.2),
        ),
    ),
    "anchors": Experiment(
        "Anchors in a cell",
        "table 1c: R50, 600 px",
        (
            _anchors(1, 1, 30.3),
            _anchors(2, 1, 31.9),
            _anchors(3, 1, 31.8),
            _anchors(1, 3, 32.4),
            _anchors(2, 3, 34.2),
            _anchors(3, 3, 34.0),
            _anchors(4, 3, 33.8),
        ),
    ),
    "ohem": Experiment(
        "Hard example mining beside focal loss",
        "table 1d: R101, 600 px",
        (
            _ohem(128, 0.7, 31.1),
            _ohem(256, 0.7, 31.8),
            _ohem(512, 0.7, 30.6),
            _ohem(128, 0.5, 32.8),
            _ohem(256, 0.5, 31.0),
            _ohem(512, 0.5, 27.6),
            _ohem(128, 0.5, 31.1, ratio=3),
            _ohem(256, 0.5, 28.3, ratio=3),
            _ohem(512, 0.5, 24.0, ratio=3),
            Variant("focal loss", FOCAL, 36.0),
        ),
    ),
    "star": Experiment(
        "The other form of focal loss",
        "table 3: R50, 600 px",
        (
            Variant("CE", CROSS_ENTROPY, 31.1),
            Variant("FL, gamma 2", FOCAL, 34.0),
            Variant(
                "FL*, gamma 2, beta 1",
                ("loss=focal_star", "loss.gamma=2", "loss.star_beta=1"),
                33.8,
            ),
            Variant(
                "FL*, gamma 4, beta 0",
                ("loss=focal_star", "loss.gamma=4", "loss.star_beta=0"),
                33.9,
            ),
        ),
    ),
    "prior": Experiment(
        "Pi, and cross entropy with and without it",
        "section 4.1: CE without pi diverges, with it 30.2",
        (
            Variant("focal loss, no prior (pi 0.5)", ("model.prior=0.5",), None),
            Variant("focal loss, pi 0.1", ("model.prior=0.1",), None),
            Variant("focal loss, pi 0.01", FOCAL, 34.0),
            Variant("focal loss, pi 0.001", ("model.prior=0.001",), None),
            Variant(
                "CE, no prior (pi 0.5)",
                ("model.prior=0.5", "loss.gamma=0", "loss.alpha=null"),
                None,
            ),
            Variant(
                "CE, pi 0.01",
                ("model.prior=0.01", "loss.gamma=0", "loss.alpha=null"),
                30.2,
            ),
        ),
    ),
}
