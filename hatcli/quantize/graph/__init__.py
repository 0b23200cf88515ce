"""From a module to a graph of known layers: traced, in normal form, fused."""
