"""Registry of datasets: packed ones and their raw twins, which give the same samples."""

from hatcli.registry import Registry

DATASETS = Registry("dataset", __name__, given=["root"])
