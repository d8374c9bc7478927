"""The first loss, expected and compared."""
