"""hat quantize: which layer costs the accuracy, and what to do about it."""
