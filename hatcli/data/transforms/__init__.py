"""Registries of transforms: of one sample (uint8, on the CPU), of a batch, and between samples."""

from hatcli.registry import Registry

TRANSFORMS = Registry("transform", __name__, skip=["batch", "mix"])
BATCH_TRANSFORMS = Registry("batch transform", "hatcli.data.transforms.batch")
MIXES = Registry("mix", "hatcli.data.transforms.mix")
