"""Registries of transforms: of one sample (uint8, on the CPU) and of a batch (on the device)."""

from hatcli.registry import Registry

TRANSFORMS = Registry("transform", __name__, skip=["batch"])
BATCH_TRANSFORMS = Registry("batch transform", "hatcli.data.transforms.batch")
