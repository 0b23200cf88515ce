"""A user's module that adds a model; configs of tests name it in ``imports``."""

from tiny_nets import TinyNet

from hatcli.models import MODELS


@MODELS.register
def tiny_registered(num_classes: int = 5) -> TinyNet:
    """Scores of 5 classes at stride 2."""
    return TinyNet()
