"""Accuracies that others published and that were measured here; figures of cost are computed.

The published ones are those of the original toolkit, from its public J6 manual: page "model zoo"
where that has the network, page "benchmark" otherwise. They are its figures for its networks.
"""

from dataclasses import dataclass

ZOO = "public J6 manual, model zoo"
BENCHMARK = "public J6 manual, benchmark page"


@dataclass(frozen=True)
class Published:
    """Accuracy on the validation set, in percent: top-1 on ImageNet, mIoU on Cityscapes."""

    metric: str
    float32: float
    int8: float
    source: str


@dataclass(frozen=True)
class Measured:
    """What this code reached, in percent.

    Attributes:
        on: which images and weights; a figure on a few pictures is no benchmark.
    """

    metric: str
    value: float
    on: str


PUBLISHED = {
    "unet": Published("mIoU", 68.02, 67.53, ZOO),
    "vargconvnet": Published("top-1", 77.93, 77.64, BENCHMARK),
    "vargnetv2": Published("top-1", 73.94, 73.64, ZOO),
    "mobilenetv1": Published("top-1", 74.12, 73.61, ZOO),
    "mobilenetv2": Published("top-1", 72.65, 72.11, ZOO),
    "resnet18": Published("top-1", 72.04, 72.03, ZOO),
    "resnet50": Published("top-1", 77.37, 76.94, ZOO),
    "efficientnet_lite0": Published("top-1", 74.79, 74.52, BENCHMARK),
    "efficientnet_lite1": Published("top-1", 76.52, 76.12, BENCHMARK),
    "efficientnet_lite2": Published("top-1", 77.34, 76.96, BENCHMARK),
    "efficientnet_lite3": Published("top-1", 79.17, 78.91, BENCHMARK),
    "efficientnet_lite4": Published("top-1", 80.63, 80.47, BENCHMARK),
}

REMARKS = {
    "vargconvnet": "the original's configuration is unpublished; this one is our own, of that cost",
}

_LITE = "300 free pictures in the classes of ImageNet, not its validation set; public weights"

MEASURED = {
    "efficientnet_lite0": Measured("top-1", 88.00, _LITE),
    "efficientnet_lite1": Measured("top-1", 92.00, _LITE),
    "efficientnet_lite2": Measured("top-1", 92.33, _LITE),
}
