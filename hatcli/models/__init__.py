"""Registry of models; each file beside this one holds one family."""

from hatcli.registry import Registry

MODELS = Registry("model", __name__)
