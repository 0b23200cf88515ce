"""Samples with boxes as a batch."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hatcli.data.transforms._boxes import BOXES, PER_BOX
from hatcli.data.transforms._fill import mean_color, padded

Targets = list[dict[str, Tensor]]


def stack_images(samples: Sequence[Mapping[str, Any]]) -> Tensor:
    """The images of samples as one tensor.

    They may differ in size: each is filled up right and below with its mean colour, to the
    height of the highest and the width of the widest. No box moves by that.

    Returns:
        (N, 3, H, W) uint8 in channels_last memory.
    """
    images = [sample["image"] for sample in samples]
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    stacked = np.empty((len(images), height, width, 3), np.uint8)
    for place, image in zip(stacked, images, strict=True):
        below, right = height - image.shape[0], width - image.shape[1]
        filled = padded(image, below, right, mean_color(image)) if below or right else image
        place[:] = filled
    return torch.from_numpy(stacked).permute(0, 3, 1, 2)


def targets_of(samples: Sequence[Mapping[str, Any]]) -> Targets:
    """What is known of the boxes of each sample, as tensors.

    Returns:
        One dict a sample: "boxes" (M, 4) left, top, right, bottom in pixels; "classes" (M,)
        int64; what else the samples have of "crowd", "difficult", "truncated", "areas" (M,) and
        "image_id" (); and "size" (2,) int64, height and width before the image was filled up.
    """
    return [_target_of(sample) for sample in samples]


def _target_of(sample: Mapping[str, Any]) -> dict[str, Tensor]:
    target = {
        name: torch.from_numpy(np.array(sample[name]))
        for name in (BOXES, *PER_BOX)
        if name in sample
    }
    if "image_id" in sample:
        target["image_id"] = torch.tensor(sample["image_id"])
    target["size"] = torch.tensor(sample["image"].shape[:2])
    return target
