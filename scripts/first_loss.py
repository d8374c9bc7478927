"""What alpha, gamma and pi do to the first class loss, and to the score of an anchor of which the
network can tell nothing: the tables of docs/focal_loss.md.

Computed in closed form from an untrained network, in which every score is pi; nothing is
trained. The defaults are COCO at 800 x 1344 pixels.
"""

from retinanet.terminal import show
from retinanet.tools.expected_loss import expected_class_loss, indifferent_score

from .command_line import new_parser

PRIORS = (0.5, 0.1, 0.01, 0.001)
# gamma, the alpha that goes best with it, and its AP: Lin et al. 2017, table 1b.
TABLE_1B = (
    (0.0, 0.75, 31.1),
    (0.1, 0.75, 31.4),
    (0.2, 0.75, 31.9),
    (0.5, 0.5, 32.9),
    (1.0, 0.25, 33.7),
    (2.0, 0.25, 34.0),
    (5.0, 0.25, 32.2),
)
# Positives among samples, as people meet them elsewhere; None: alpha is 1 - their share.
PATCHES = (200, 5_000)
BALANCES = ((0.5, 0.0), (0.75, 0.0), (None, 0.0), (0.25, 2.0), (0.5, 2.0), (None, 2.0), (0.25, 5.0))


def main() -> None:
    """Print the tables in Markdown."""
    parser = new_parser("first_loss", __doc__)
    for name, value, meaning in (
        ("--anchors", 201_600, "of all images"),
        ("--positives", 50, "of these anchors"),
        ("--classes", 80, "K"),
    ):
        parser.add_argument(name, type=int, default=value, help=f"{meaning} (default: {value})")
    args = parser.parse_args()
    if not 1 <= args.positives <= args.anchors or args.classes < 1:
        parser.error("give at least one class and one positive, and no more positives than anchors")
    show("\n".join(tables(args.anchors, args.positives, args.classes)))


def tables(anchors: int, positives: int, classes: int) -> list[str]:
    """Lines of the three tables; ``anchors`` are positives and background together."""

    def figure(value: float) -> str:
        """Three significant digits, in full."""
        return f"{float(f'{value:.3g}'):,.10g}"

    counts = {"num_positives": positives, "num_background": anchors - positives}
    lines = ["| pi | y = 1 | y = 0 | first class loss |", "| ---: | ---: | ---: | ---: |"]
    for prior in PRIORS:
        loss = expected_class_loss(0.25, 2.0, prior, num_classes=classes, **counts)
        cells = (loss.positives, loss.background, loss.total)
        lines.append(f"| {prior:g} | {' | '.join(map(figure, cells))} |")
    lines += [
        "",
        "| gamma | alpha | y = 1 | y = 0 | y = 0 / y = 1 | AP in the paper |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for gamma, alpha, ap in TABLE_1B:
        loss = expected_class_loss(alpha, gamma, 0.01, num_classes=classes, **counts)
        cells = (loss.positives, loss.background, loss.ratio)
        lines.append(f"| {gamma:g} | {alpha:g} | {' | '.join(map(figure, cells))} | {ap} |")
    pairs = (PATCHES, (positives, anchors * classes))
    lines += [
        "",
        "| gamma | alpha | " + " | ".join(f"{ones:,} of {all_:,}" for ones, all_ in pairs) + " |",
        "| ---: | --- | ---: | ---: |",
    ]
    for alpha, gamma in BALANCES:
        name = "share of y = 0" if alpha is None else f"{alpha:g}"
        shares = [ones / all_ for ones, all_ in pairs]
        scores = [indifferent_score(1 - s if alpha is None else alpha, gamma, s) for s in shares]
        lines.append(f"| {gamma:g} | {name} | {' | '.join(map(figure, scores))} |")
    return lines


if __name__ == "__main__":
    main()
