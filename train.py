"""Train RetinaNet on a COCO-format data set: ``python train.py --help`` lists every setting."""

from retinanet.cli.main import main

if __name__ == "__main__":
    main("train")
