"""UNet for segmentation: a MobileNetV1 encoder and a decoder of separable convolutions.

After the public manual of the J6 toolkit ("unet_mobilenetv1_cityscapes": 7.36 GOPs at
1024x2048, which count a multiply-add as two) and Howard et al., arXiv 1704.04861.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

from torch import Tensor, nn

from hatcli.errors import ConfigError, UsageError, did_you_mean
from hatcli.models import MODELS
from hatcli.models.blocks import conv_bn, init_weights, separable

Block = Callable[..., nn.Module]

BLOCKS = {"4": 2, "8": 2, "16": 6, "32": 2}  # separable convolutions at each stride


@MODELS.register
def unet(
    num_classes: int = 19,
    alpha: float = 0.25,
    upsample: Literal["bilinear", "nearest"] = "bilinear",
    bn_eps: float = 2e-5,
    bn_momentum: float = 0.1,
) -> "UNet":
    """A small UNet that gives scores at strides 4, 8, 16, 32 and 64.

    Height and width of the images must be multiples of 64 (`UNet.size_divisor`); ``forward``
    doesn't check it, so that it stays traceable: callers pad.

    Args:
        num_classes: channels of each score map.
        alpha: width multiplier of MobileNetV1; a map of stride s has 32 * alpha * s channels.
        upsample: how the decoder doubles a map.
        bn_eps: added to the variance in every normalisation.
        bn_momentum: share of the newest batch in the running statistics.
    """
    width = round(32 * alpha)
    if width < 1 or num_classes < 1:
        raise ConfigError(
            f"model 'unet': alpha={alpha} and num_classes={num_classes} leave no channel",
            "alpha is at least 1/32, num_classes at least 1",
        )
    conv = partial(conv_bn, bias=True, bn_eps=bn_eps, bn_momentum=bn_momentum)
    block: Block = partial(separable, bias=True, bn_eps=bn_eps, bn_momentum=bn_momentum)
    channels = {stride: int(stride) * width for stride in UNet.strides}
    model = UNet(
        Encoder(conv(3, width, 3, 2), width, block),
        Decoder(
            nn.Sequential(
                block(channels["32"], channels["64"], 2), block(channels["64"], channels["64"])
            ),
            {stride: DecoderStage(channels[stride], upsample, block) for stride in BLOCKS},
        ),
        {
            stride: nn.Sequential(
                OrderedDict(smooth=block(wide, wide), scores=conv(wide, num_classes, relu=False))
            )
            for stride, wide in channels.items()
        },
    )
    init_weights(model)
    return model


class UNet(nn.Module):
    """An encoder, a decoder and one head a stride.

    ``forward`` takes float32 images (N, 3, H, W), H and W multiples of `size_divisor`, and
    returns a tuple of float32 scores (N, num_classes, H / s, W / s), finest stride s first;
    just that tensor where one head is left.
    """

    size_divisor = 64
    strides = ("4", "8", "16", "32", "64")

    def __init__(
        self, encoder: "Encoder", decoder: "Decoder", heads: Mapping[str, nn.Module]
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.heads = nn.ModuleDict(heads)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Scores of every head, finest first."""
        maps = self.decoder(self.encoder(images))
        scores = tuple(head(maps[stride]) for stride, head in self.heads.items())
        return scores if len(scores) > 1 else scores[0]

    def keep_head(self, head: str) -> "UNet":
        """A UNet that computes the scores of one stride alone and returns that one tensor.

        It shares its parameters and buffers with this one, train and eval mode of the layers
        included, and holds only the layers that this head needs.

        Args:
            head: the stride, e.g. "4".

        Raises:
            UsageError: there is no such head.
        """
        if head not in self.heads:
            raise UsageError(f"unet has no head {head!r}", did_you_mean(head, self.heads))
        kept = UNet(self.encoder, self.decoder.down_to(int(head)), {head: self.heads[head]})
        kept.training = self.training
        return kept


class Encoder(nn.Module):
    """MobileNetV1 without its classifier: from images (N, 3, H, W) to {stride: map}.

    The map of stride s is (N, s * width, H / s, W / s), for s = 2, 4, 8, 16 and 32.
    """

    def __init__(self, stem: nn.Module, width: int, block: Block) -> None:
        super().__init__()
        stages: dict[str, nn.Module] = {"2": nn.Sequential(stem, block(width, 2 * width))}
        for stride, repeats in BLOCKS.items():
            channels = int(stride) * width
            blocks = [block(channels // 2, channels, 2)]
            blocks += [block(channels, channels) for _ in range(repeats - 1)]
            stages[stride] = nn.Sequential(*blocks)
        self.stages = nn.ModuleDict(stages)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """The map of each stage by its stride."""
        maps = {}
        for stride, stage in self.stages.items():
            x = stage(x)
            maps[stride] = x
        return maps


class Decoder(nn.Module):
    """From the encoder's maps to {stride: map}: down once more to 64, then up stage by stage."""

    def __init__(self, top: nn.Module, stages: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.top = top
        coarsest_first = sorted(stages, key=int, reverse=True)
        self.stages = nn.ModuleDict({stride: stages[stride] for stride in coarsest_first})

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The decoded map of each stride, with as many channels as the encoder's."""
        x = self.top(features["32"])
        maps = {"64": x}
        for stride, stage in self.stages.items():
            x = stage(features[stride], x)
            maps[stride] = x
        return maps

    def down_to(self, stride: int) -> "Decoder":
        """A decoder that shares its layers with this one and stops at ``stride``."""
        kept = {name: stage for name, stage in self.stages.items() if int(name) >= stride}
        decoder = Decoder(self.top, kept)
        decoder.training = self.training
        return decoder


class DecoderStage(nn.Module):
    """One step up: the encoder's map plus the doubled map from below it in resolution."""

    def __init__(self, channels: int, upsample: str, block: Block) -> None:
        super().__init__()
        self.lateral = nn.Sequential(
            block(channels, channels), block(channels, channels, relu=False)
        )
        self.above = block(2 * channels, channels)
        self.upsample = nn.Upsample(
            scale_factor=2.0,
            mode=upsample,
            align_corners=False if upsample == "bilinear" else None,
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, feature: Tensor, coarse: Tensor) -> Tensor:
        """From (N, C, H, W) and (N, 2C, H / 2, W / 2) to (N, C, H, W)."""
        return self.relu(self.lateral(feature) + self.upsample(self.above(coarse)))
