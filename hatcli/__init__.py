"""From a raw driving-perception dataset to a fixed-point model that runs."""

__version__ = "0.1.0"
