"""From a trained network to COCO AP, tables and pictures."""
