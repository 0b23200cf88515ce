"""Random chains of simple changes, of one strength."""

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps

from hatcli.data.transforms import TRANSFORMS
from hatcli.data.transforms._boxes import MAPS, map_picture, moved_maps, refuse_boxes
from hatcli.errors import ConfigError

FILTERS = {"nearest": Image.Resampling.NEAREST, "bilinear": Image.Resampling.BILINEAR}

MOVES = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")

COLOURS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "Brightness": lambda image, amount: ImageEnhance.Brightness(image).enhance(1 + amount),
    "Color": lambda image, amount: ImageEnhance.Color(image).enhance(1 + amount),
    "Contrast": lambda image, amount: ImageEnhance.Contrast(image).enhance(1 + amount),
    "Sharpness": lambda image, amount: ImageEnhance.Sharpness(image).enhance(1 + amount),
    "Posterize": lambda image, amount: ImageOps.posterize(image, int(amount)),
    "Solarize": lambda image, amount: ImageOps.solarize(image, math.ceil(amount)),
    "AutoContrast": lambda image, amount: ImageOps.autocontrast(image),
    "Equalize": lambda image, amount: ImageOps.equalize(image),
}

OPERATIONS = ("Identity", *MOVES, *COLOURS)
SIGNED = {*MOVES, "Brightness", "Color", "Contrast", "Sharpness"}

# First and last amount of the operations whose scale doesn't depend on the image.
SCALES = {
    "ShearX": (0.0, 0.3),
    "ShearY": (0.0, 0.3),
    "Rotate": (0.0, 30.0),
    "Brightness": (0.0, 0.9),
    "Color": (0.0, 0.9),
    "Contrast": (0.0, 0.9),
    "Sharpness": (0.0, 0.9),
    "Solarize": (255.0, 0.0),
}


@TRANSFORMS.register
class RandAugment:
    """The sample after a few operations, each drawn out of 14, all of one magnitude.

    Cubuk et al., "RandAugment: Practical automated data augmentation with a reduced search
    space", arXiv 1909.13719, with the operations, scales and bytes of torchvision. A label map
    moves along; it takes the nearest id, and 255 where the image is filled up. Samples with
    boxes are refused.

    Args:
        num_ops: operations, one after the other.
        magnitude: strength, from 0 to ``num_magnitude_bins`` - 1.
        num_magnitude_bins: steps of the scale of strengths.
        interpolation: filter for images that are sheared or turned.
        fill: RGB of what comes in from outside the image, 0 to 255; None = black.
    """

    def __init__(
        self,
        num_ops: int = 2,
        magnitude: int = 9,
        num_magnitude_bins: int = 31,
        interpolation: Literal["nearest", "bilinear"] = "nearest",
        fill: list[int] | None = None,
    ) -> None:
        if num_ops < 1:
            raise ConfigError(f"RandAugment: num_ops must be at least 1, got {num_ops}")
        if num_magnitude_bins < 2:
            raise ConfigError(
                f"RandAugment: num_magnitude_bins must be at least 2, got {num_magnitude_bins}"
            )
        if not 0 <= magnitude < num_magnitude_bins:
            raise ConfigError(
                f"RandAugment: magnitude must be from 0 to {num_magnitude_bins - 1}, "
                f"got {magnitude}"
            )
        if interpolation not in FILTERS:
            raise ConfigError(
                f"RandAugment: interpolation must be one of {', '.join(FILTERS)}, "
                f"got {interpolation!r}"
            )
        if fill is not None and (len(fill) != 3 or not all(0 <= part <= 255 for part in fill)):
            raise ConfigError(f"RandAugment: fill must be 3 numbers from 0 to 255, got {fill}")
        self.num_ops = num_ops
        self.magnitude = magnitude
        self.num_magnitude_bins = num_magnitude_bins
        self.filter = FILTERS[interpolation]
        self.fill = tuple(fill or (0, 0, 0))

    def __call__(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Apply operations that are drawn from ``rng``."""
        refuse_boxes(sample, "RandAugment")
        image = Image.fromarray(sample["image"])
        maps = dict(moved_maps(sample, lambda values, _: values))
        for _ in range(self.num_ops):
            operation = OPERATIONS[rng.integers(len(OPERATIONS))]
            amount = amount_of(operation, self.magnitude, self.num_magnitude_bins, image.size)
            if operation in SIGNED and rng.integers(2):
                amount = -amount
            image = apply_operation(image, operation, amount, self.filter, self.fill)
            if operation in MOVES:
                for name, values in maps.items():
                    moved = apply_operation(map_picture(values), operation, amount, fill=MAPS[name])
                    maps[name] = np.array(moved).astype(values.dtype, copy=False)
        return {**sample, "image": np.array(image), **maps}


def amount_of(operation: str, magnitude: int, bins: int, size: tuple[int, int]) -> float:
    """How strongly an operation acts, without its sign.

    Args:
        operation: one of `OPERATIONS`.
        magnitude: position on the scale, from 0 to ``bins`` - 1.
        bins: steps of the scale.
        size: width and height of the image, which the way of a translation is a share of.

    Returns:
        A slope, pixels, degrees, a factor less 1, bits that stay, or a level, in float32 as
        torchvision has it; 0 where the operation has no strength.
    """
    if operation == "Posterize":
        return float(8 - round(magnitude / ((bins - 1) / 4)))
    if operation.startswith("Translate"):
        scale = 0.0, 150 / 331 * size[operation == "TranslateY"]
    elif operation in SCALES:
        scale = SCALES[operation]
    else:
        return 0.0
    return torch.linspace(*scale, bins)[magnitude].item()


def apply_operation(
    image: Image.Image,
    operation: str,
    amount: float,
    resample: Image.Resampling = Image.Resampling.NEAREST,
    fill: tuple[int, ...] | int = 0,
) -> Image.Image:
    """The image after one operation, with the bytes of torchvision.

    Args:
        image: RGB; for `MOVES` also a map of labels.
        operation: one of `OPERATIONS`.
        amount: as `amount_of` gives it, with a sign.
        resample: filter of `MOVES`.
        fill: colour of what comes in from outside.
    """
    if operation in COLOURS:
        return COLOURS[operation](image, amount)
    if operation == "Identity":
        return image
    if operation == "Rotate":
        return image.rotate(amount, resample, fillcolor=fill)
    matrix = {  # from places in the result to places in the image
        "ShearX": (1, amount, 0, 0, 1, 0),
        "ShearY": (1, 0, 0, amount, 1, 0),
        "TranslateX": (1, 0, -int(amount), 0, 1, 0),
        "TranslateY": (1, 0, 0, 0, 1, -int(amount)),
    }[operation]
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample, fillcolor=fill)
