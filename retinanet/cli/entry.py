"""The commands of an installed package: what train.py and eval.py are in a checkout."""

from retinanet.cli.main import main


def train() -> None:
    """``retinanet-train``: the same arguments as train.py."""
    main("train")


def evaluate() -> None:
    """``retinanet-eval``: the same arguments as eval.py."""
    main("eval")
