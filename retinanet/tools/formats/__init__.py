"""Annotations in VOC, YOLO and CSV to COCO JSON, COCO JSON to a clean one, all of them to YOLO."""
