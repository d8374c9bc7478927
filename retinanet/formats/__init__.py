"""Annotations in other formats than COCO JSON: PASCAL VOC, YOLO, CSV tables."""
