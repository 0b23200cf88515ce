"""ResNet for classification: He et al., "Deep Residual Learning", arXiv 1512.03385.

The stride of a bottleneck is at its 3x3 convolution ("v1.5"). The state_dict has torchvision's
names and shapes, so that torchvision's weights load as they are.
"""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from hatcli.models import MODELS
from hatcli.models.blocks import DropPath, drop_path_rates, init_classifier, init_weights


@MODELS.register
def resnet18(num_classes: int = 1000, drop_path: float = 0.0) -> "ResNet":
    """ResNet-18: 1.814 GMACs at 224x224 and 11.69 M parameters.

    Args:
        num_classes: channels of the scores.
        drop_path: share of the images for which training leaves out the last residual branch;
            earlier ones less, down to none.
    """
    return _build(BasicBlock, (2, 2, 2, 2), num_classes, drop_path)


@MODELS.register
def resnet50(num_classes: int = 1000, drop_path: float = 0.0) -> "ResNet":
    """ResNet-50: 4.089 GMACs at 224x224 and 25.56 M parameters.

    Args:
        num_classes: channels of the scores.
        drop_path: as in `resnet18`.
    """
    return _build(Bottleneck, (3, 4, 6, 3), num_classes, drop_path)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut: (N, in, H, W) to (N, out, H / stride, ...)."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(in_channels, channels, 3, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = _conv(channels, channels, 3)
        self.bn2 = nn.BatchNorm2d(channels)
        self.drop_path = DropPath(0.0)
        self.downsample = _downsample(in_channels, channels, stride)
        self.relu2 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """The new map plus the old one, no value below 0."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        return self.relu2(self.drop_path(x) + shortcut)


class Bottleneck(nn.Module):
    """A 3x3 convolution between two 1x1, beside a shortcut; gives 4 times ``channels``."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(in_channels, channels, 1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = _conv(channels, channels, 3, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv3 = _conv(channels, channels * self.expansion, 1)
        self.bn3 = nn.BatchNorm2d(channels * self.expansion)
        self.drop_path = DropPath(0.0)
        self.downsample = _downsample(in_channels, channels * self.expansion, stride)
        self.relu3 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """The new map plus the old one, no value below 0."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.relu2(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        return self.relu3(self.drop_path(x) + shortcut)


class ResNet(nn.Module):
    """A stem at stride 4, four stages, the average over the map and a linear layer.

    ``forward`` takes float32 images (N, 3, H, W) and returns float32 scores (N, num_classes).
    """

    def __init__(self, stages: Sequence[nn.Module], channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = _conv(3, 64, 7, 2)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten(1)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Scores (N, num_classes)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.flatten(self.avgpool(x)))


def _build(
    block: Callable[[int, int, int], BasicBlock | Bottleneck],
    repeats: Sequence[int],
    num_classes: int,
    drop_path: float,
) -> ResNet:
    rates = iter(drop_path_rates("resnet", sum(repeats), drop_path))
    stages, before = [], 64
    for index, count in enumerate(repeats):
        channels, blocks = 64 << index, list[nn.Module]()
        for position in range(count):
            stride = 2 if index > 0 and position == 0 else 1
            built = block(before, channels, stride)
            built.drop_path.rate = next(rates)
            before = channels * built.expansion
            blocks.append(built)
        stages.append(nn.Sequential(*blocks))
    model = ResNet(stages, before, num_classes)
    init_weights(model)
    init_classifier(model.fc)
    return model


def _conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False)


def _downsample(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """What fits the shortcut to the new map, where it doesn't fit already."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(_conv(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels))
