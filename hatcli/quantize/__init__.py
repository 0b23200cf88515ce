"""From a float model to integers: passes over a graph, each one file.

``prepare`` makes a graph that fake-quantizes, ``calibrate`` finds its ranges, ``lower`` turns it
into a graph of integers. No pass runs an epoch: QAT is `prepare` in front of the same training.
"""

from hatcli.registry import Registry

OBSERVERS = Registry("observer", "hatcli.quantize.observers", given=["grid_of"])

TARGETS = Registry("target", "hatcli.quantize.targets")
