"""Which size samples have behind a list of transforms, where that is known beforehand."""

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from hatcli.config import Config
from hatcli.data.transforms import TRANSFORMS
from hatcli.data.transforms.auto_augment import RandAugment
from hatcli.data.transforms.color import ColorJitter
from hatcli.data.transforms.crop import RandomCrop
from hatcli.data.transforms.erase import RandomErasing
from hatcli.data.transforms.flip import RandomFlip
from hatcli.data.transforms.pad import PadToMultiple
from hatcli.data.transforms.resized_crop import CenterCrop, RandomResizedCrop
from hatcli.data.transforms.scale import Resize
from hatcli.data.transforms.scale_crop_flip import RandomScaleCropFlip
from hatcli.errors import ConfigError

_CROPS = (RandomCrop, RandomScaleCropFlip, RandomResizedCrop, CenterCrop)
_KEEP_THE_SIZE = (RandomFlip, ColorJitter, RandAugment, RandomErasing)

Size = tuple[int, int]


def require_sizes(config: Config, model: nn.Module) -> None:
    """Refuse transforms that certainly give a network a size that it doesn't take.

    Args:
        model: says by its ``size_divisor``, if it has one, what both sides must be multiples of.

    Raises:
        ConfigError: the transform, its size, and the sizes beside it that would do.
    """
    divisor = int(getattr(model, "size_divisor", 1))
    for split in ("train", "val"):
        nodes = config[split].get("transforms", [])
        size, place = fixed_size([TRANSFORMS.build(node) for node in nodes])
        if size is None or not any(side % divisor for side in size):
            continue
        low, high = (tuple(divisor * round_(side / divisor) for side in size)
                     for round_ in (math.floor, math.ceil))  # fmt: skip
        fitting = " or ".join(_text(one) for one in dict.fromkeys((low, high)) if min(one) > 0)
        raise ConfigError(
            f"{split}.transforms.{place}: {nodes[place]['type']} gives {_text(size)}, "
            f"model {config['model']['type']!r} takes multiples of {divisor}",
            f"a size that it takes: {fitting}",
        )


def fixed_size(transforms: Sequence[Any]) -> tuple[Size | None, int]:
    """Height and width of all samples behind these, and the place of the transform that sets them.

    None where they depend on the sample, or on a transform of which nothing is known.
    """
    size: Size | None = None
    setter = 0
    for place, transform in enumerate(transforms):
        if isinstance(transform, _KEEP_THE_SIZE):
            continue
        setter = place
        if isinstance(transform, _CROPS):
            size = transform.height, transform.width
        elif isinstance(transform, Resize) and len(transform.sides) == 2:
            size = transform.sides[0], transform.sides[1]
        elif isinstance(transform, PadToMultiple) and size is not None:
            below, right = (-side % transform.divisor for side in size)
            size = size[0] + below, size[1] + right
        else:
            size = None
    return size, setter


def _text(size: Sequence[int]) -> str:
    return "x".join(map(str, size))
