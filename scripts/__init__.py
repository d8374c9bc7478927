"""Command-line tools, one job each: python -m scripts.NAME --help."""
