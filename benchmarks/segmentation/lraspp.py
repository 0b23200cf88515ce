"""torchvision's LRASPP MobileNetV3-large as a part of a config: a peer to compare with."""

from torch import Tensor, nn
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

from hatcli.models import MODELS


@MODELS.register
def lraspp(num_classes: int = 19) -> nn.Module:
    """LRASPP with a MobileNetV3-large backbone (Howard et al., arXiv 1905.02244), from scratch."""
    return Lraspp(num_classes)


class Lraspp(nn.Module):
    """torchvision's network; (N, 3, H, W) float32 to scores (N, classes, H, W)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.network = lraspp_mobilenet_v3_large(
            weights=None, weights_backbone=None, num_classes=num_classes
        )

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.network(images)["out"]
        return scores
