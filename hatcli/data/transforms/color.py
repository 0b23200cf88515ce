"""Change the colours of an image."""

import math
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

from hatcli.data.transforms import TRANSFORMS
from hatcli.errors import ConfigError


@TRANSFORMS.register
class ColorJitter:
    """The image with brightness, contrast, saturation and hue changed, in random order.

    Each step gives the same bytes as torchvision's function of that name on a Pillow image.

    Args:
        brightness: b draws a factor from max(0, 1 - b) to 1 + b; 0 = leave as it is.
        contrast: the same.
        saturation: the same.
        hue: h draws a turn from -h to h of the colour circle; at most 0.5.
    """

    def __init__(
        self,
        brightness: float = 0.0,
        contrast: float = 0.0,
        saturation: float = 0.0,
        hue: float = 0.0,
    ) -> None:
        amounts = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
        for name, amount in amounts.items():
            if not 0 <= amount < math.inf:
                raise ConfigError(f"ColorJitter: {name} must be at least 0, got {amount}")
        if not 0 <= hue <= 0.5:
            raise ConfigError(f"ColorJitter: hue must be from 0 to 0.5, got {hue}")
        self.ranges = {
            name: (max(0.0, 1 - amount), 1 + amount) for name, amount in amounts.items() if amount
        }
        if hue:
            self.ranges["hue"] = (-hue, hue)

    def __call__(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Change the image; the label stays."""
        steps = list(self.ranges)
        image = Image.fromarray(sample["image"])
        for index in rng.permutation(len(steps)):
            amount = float(rng.uniform(*self.ranges[steps[index]]))
            image = ADJUST[steps[index]](image, amount)
        return {**sample, "image": np.array(image)}


def adjust_brightness(image: Image.Image, factor: float) -> Image.Image:
    """Blend with black; 1 = the same image."""
    return ImageEnhance.Brightness(image).enhance(factor)


def adjust_contrast(image: Image.Image, factor: float) -> Image.Image:
    """Blend with the mean grey level; 1 = the same image."""
    return ImageEnhance.Contrast(image).enhance(factor)


def adjust_saturation(image: Image.Image, factor: float) -> Image.Image:
    """Blend with its grey version; 1 = the same image."""
    return ImageEnhance.Color(image).enhance(factor)


def adjust_hue(image: Image.Image, turn: float) -> Image.Image:
    """Turn the colour circle; 0 = the same hues, 0.5 and -0.5 the opposite ones."""
    hue, saturation, value = image.convert("HSV").split()
    steps = int(turn * 255) % 256  # towards zero first: what a cast to uint8 does
    turned = Image.fromarray(np.asarray(hue) + np.uint8(steps))  # wraps around
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")


ADJUST = {
    "brightness": adjust_brightness,
    "contrast": adjust_contrast,
    "saturation": adjust_saturation,
    "hue": adjust_hue,
}
