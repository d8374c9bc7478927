"""What an evaluation means: why AP is low, which errors cost it, where to cut the scores."""
