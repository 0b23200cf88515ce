"""Networks small enough to export in a second, and the way to export them."""

from pathlib import Path

import torch
from torch import Tensor, nn

from hatcli.export.check import check_onnx, random_images
from hatcli.export.onnx import Deployed, OnnxExport, export_onnx, second_shape
from hatcli.export.publish import unpublished

DIVISOR = 4


class TinyNet(nn.Module):
    """Scores of 5 classes at stride 2: two convolutions, one of them with a batch norm."""

    size_divisor = DIVISOR

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        )
        self.down = nn.Conv2d(4, 4, 3, 2, 1)
        self.up = nn.Upsample(scale_factor=2.0, mode="bilinear")
        self.head = nn.Conv2d(4, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.up(self.down(x)))


class Halve(nn.Module):
    """uint8 images to float32 in -1 to 1."""

    def forward(self, images: Tensor) -> Tensor:
        return (images.float() - 128.0) / 128.0


def tiny_net(seed: int = 0) -> TinyNet:
    torch.manual_seed(seed)
    net = TinyNet()
    randomize_norms(net)
    return net.eval()


def randomize_norms(net: nn.Module) -> None:
    """Statistics of a trained network: those of a new one would fold into nothing."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)


def batches_for(deployed: Deployed, shapes) -> list[Tensor]:
    images = [random_images(shape, seed) for seed, shape in enumerate(shapes)]
    return images if deployed.preprocess is not None else [Halve()(batch) for batch in images]


def write_onnx(
    path: Path, deployed: Deployed, shape=(1, 3, 16, 24), *, dynamic="none", metadata=None
) -> OnnxExport:
    """Export, check and publish, as the command does."""
    exported = export_onnx(
        deployed, shape, dynamic=dynamic, size_divisor=DIVISOR, metadata=metadata
    )
    with unpublished(path) as temporary:
        temporary.write_bytes(exported.model.SerializeToString())
        shapes = [shape, second_shape(shape, dynamic, DIVISOR)]
        check_onnx(temporary, deployed.scores, batches_for(deployed, shapes))
    return exported
