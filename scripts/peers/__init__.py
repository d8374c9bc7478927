"""What ``scripts.compare_peers`` compares, and how a comparison is held."""
