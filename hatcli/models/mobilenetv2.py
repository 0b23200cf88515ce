"""MobileNetV2 for classification: Sandler et al., arXiv 1801.04381.

Its state_dict has torchvision's names and shapes, so that torchvision's weights load as they are.
"""

from torch import Tensor, nn

from hatcli.errors import ConfigError
from hatcli.models import MODELS
from hatcli.models.blocks import (
    DropPath,
    drop_path_rates,
    init_classifier,
    init_weights,
    rounded_channels,
)

# (expansion, channels at width 1, repeats, stride of the first) of each stage.
PLAN = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
    (6, 320, 1, 1),
)  # fmt: skip


@MODELS.register
def mobilenetv2(
    num_classes: int = 1000, width: float = 1.0, dropout: float = 0.2, drop_path: float = 0.0
) -> "MobileNetV2":
    """MobileNetV2: 0.301 GMACs at 224x224 and 3.50 M parameters at width 1.

    Args:
        num_classes: channels of the scores.
        width: multiplies all channels; they are rounded to multiples of 8.
        dropout: share of the averaged features that training sets to 0.
        drop_path: share of the images for which training leaves out the last residual block;
            earlier ones less, down to none.
    """
    if not width >= 0.1 or not 0 <= dropout < 1:
        raise ConfigError(
            f"model 'mobilenetv2': got width {width} and dropout {dropout}",
            "width is at least 0.1, dropout from 0 to below 1",
        )
    model = MobileNetV2(num_classes, width, dropout)
    blocks = [layer for layer in model.features if isinstance(layer, InvertedResidual)]
    for block, rate in zip(
        blocks, drop_path_rates("mobilenetv2", len(blocks), drop_path), strict=True
    ):
        block.drop_path.rate = rate
    init_weights(model)
    init_classifier(model.classifier[1])
    return model


class MobileNetV2(nn.Module):
    """A stem, inverted residual blocks, the average over the map and a linear layer.

    ``forward`` takes float32 images (N, 3, H, W) and returns float32 scores (N, num_classes).
    """

    def __init__(self, num_classes: int, width: float, dropout: float) -> None:
        super().__init__()
        before = rounded_channels(32 * width)
        layers: list[nn.Module] = [_conv_bn_relu6(3, before, 3, 2)]
        for expansion, channels, repeats, first_stride in PLAN:
            wide = rounded_channels(channels * width)
            for index in range(repeats):
                stride = first_stride if index == 0 else 1
                layers.append(InvertedResidual(before, wide, stride, expansion))
                before = wide
        top = rounded_channels(1280 * max(1.0, width))
        layers.append(_conv_bn_relu6(before, top))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten(1)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(top, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        """Scores (N, num_classes)."""
        return self.classifier(self.flatten(self.pool(self.features(images))))


class InvertedResidual(nn.Module):
    """Widen, filter each channel, narrow: (N, in, H, W) to (N, out, H', W'), H' = H / stride."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = in_channels * expansion
        layers = [_conv_bn_relu6(in_channels, wide)] if expansion != 1 else []
        layers += [
            _conv_bn_relu6(wide, wide, 3, stride, groups=wide),
            nn.Conv2d(wide, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        ]
        self.conv = nn.Sequential(*layers)
        self.drop_path = DropPath(0.0)
        self.is_residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """The new map, plus the old one where both have one size."""
        return x + self.drop_path(self.conv(x)) if self.is_residual else self.conv(x)


def _conv_bn_relu6(
    in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, groups: int = 1
) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(
            in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False
        ),
        nn.BatchNorm2d(out_channels),
        nn.ReLU6(inplace=True),
    )
