"""From COCO JSON and image files to batches."""
