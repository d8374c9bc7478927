"""Tools around the detector: optional, none is imported by training."""
