"""Evaluate a checkpoint: ``python eval.py --help`` lists every setting."""

from retinanet.cli.main import main

if __name__ == "__main__":
    main("eval")
