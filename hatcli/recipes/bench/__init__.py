"""hat bench: where the time goes."""
