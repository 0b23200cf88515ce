"""Registry of metrics; each file beside this one holds one metric."""

from hatcli.registry import Registry

METRICS = Registry("metric", __name__, given=["classes"])
