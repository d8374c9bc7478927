"""Stages of the package beside the public code of its peers, timed in turns."""
