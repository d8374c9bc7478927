"""What ``scripts.ablate`` runs, and how its results are shown."""
