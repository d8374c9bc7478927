"""From a trained network to detections and COCO AP."""
