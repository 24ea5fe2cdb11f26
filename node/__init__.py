"""One machine's work."""
