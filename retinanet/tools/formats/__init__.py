"""Annotation formats beside COCO's."""
