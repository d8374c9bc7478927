"""A trained model as one file for other programs, written only when it detects the same."""
