"""What a model gets wrong, and why an AP is low."""
