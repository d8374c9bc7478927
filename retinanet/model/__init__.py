"""The network: backbone, feature pyramid, heads and anchors."""
