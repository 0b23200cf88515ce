"""hat eval: scoring whatever holds a model."""
