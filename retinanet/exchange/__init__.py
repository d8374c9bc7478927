"""Checkpoints of other projects: read as ours, written as torchvision's."""
