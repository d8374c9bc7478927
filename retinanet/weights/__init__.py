"""Weights from elsewhere: ImageNet, and the checkpoints of other projects."""
