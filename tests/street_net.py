"""A user's module with a network that learns drawn streets in seconds, and a config for it."""

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from hatcli.models import MODELS

CONFIG = """
task = "segmentation"
imports = [{module!r}]
data_rootdir = {root!r}
epochs = 30
model = {{"type": "street_net"}}
train = {{
    "dataset": {{"type": "Cityscapes", "path": "train_lmdb"}},
    "transforms": [{{"type": "RandomFlip"}}],
    "batch_size": 3,
}}
val = {{"dataset": {{"type": "Cityscapes", "path": "val_lmdb"}}, "batch_size": 2}}
batch_transforms = [{{"type": "RgbToYuv444"}}]
loss = {{"type": "CrossEntropy"}}
metric = {{"type": "MeanIoU", "num_classes": 19}}
optim = {{"type": "adamw", "lr": 0.02}}
fit = {{"precision": "float32", "val_every": 10}}
quantize = {{"images": 5}}
deploy = {{"argmax": True, "shape": [1, 3, 64, 128]}}
"""


def conv_bn(inputs: int, outputs: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


@MODELS.register
class street_net(nn.Module):  # noqa: N801 - as configs name models
    """Scores of a few classes at stride 2."""

    def __init__(self, num_classes: int = 19, width: int = 8) -> None:
        super().__init__()
        self.stem = conv_bn(3, width, 2)
        self.down = conv_bn(width, width, 2)
        self.depthwise = conv_bn(width, width, groups=width)
        self.head = nn.Conv2d(width, num_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, num_classes, H / 2, W / 2)."""
        fine = self.stem(images)
        coarse = self.down(fine)
        coarse = self.depthwise(coarse) + coarse
        return self.head(fine + F.interpolate(coarse, scale_factor=2.0, mode="nearest"))


def write_street_config(folder: Path, data: Path) -> Path:
    path = folder / "street.py"
    path.write_text(CONFIG.format(module=str(Path(__file__).resolve()), root=str(data)))
    return path
