"""hat predict: what a model sees."""
