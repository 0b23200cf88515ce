"""Registry of losses; each file beside this one holds one loss."""

from hatcli.registry import Registry

LOSSES = Registry("loss", __name__, given=["class_pixels"])
