"""Detections in images: drawn, and as files."""
