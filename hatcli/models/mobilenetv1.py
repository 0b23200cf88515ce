"""MobileNetV1 for classification: Howard et al., "MobileNets", arXiv 1704.04861."""

from torch import Tensor, nn

from hatcli.errors import ConfigError
from hatcli.models import MODELS
from hatcli.models.blocks import conv_bn, init_classifier, init_weights, rounded_channels, separable

# (channels at alpha 1, stride) of each separable convolution after the stem of 32 channels.
PLAN = (
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2),
    (1024, 1),
)  # fmt: skip


@MODELS.register
def mobilenetv1(num_classes: int = 1000, alpha: float = 1.0) -> "MobileNetV1":
    """MobileNetV1: 0.569 GMACs at 224x224 and 4.23 M parameters at alpha 1.

    Args:
        num_classes: channels of the scores.
        alpha: width multiplier; channels are rounded to multiples of 8.
    """
    if not alpha >= 0.125:
        raise ConfigError(f"model 'mobilenetv1': alpha must be at least 0.125, got {alpha}")
    model = MobileNetV1(num_classes, alpha)
    init_weights(model)
    init_classifier(model.classifier)
    return model


class MobileNetV1(nn.Module):
    """A stem, 13 separable convolutions, the average over the map and a linear layer.

    ``forward`` takes float32 images (N, 3, H, W) and returns float32 scores (N, num_classes).
    """

    def __init__(self, num_classes: int, alpha: float) -> None:
        super().__init__()
        before = rounded_channels(32 * alpha)
        layers = [conv_bn(3, before, 3, 2)]
        for channels, stride in PLAN:
            wide = rounded_channels(channels * alpha)
            layers.append(separable(before, wide, stride))
            before = wide
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten(1)
        self.classifier = nn.Linear(before, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Scores (N, num_classes)."""
        return self.classifier(self.flatten(self.pool(self.features(images))))
