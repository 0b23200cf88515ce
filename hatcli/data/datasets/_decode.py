"""From the bytes of an image to its pixels."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hatcli.data.packers._images import load_pixels, open_image


def stored_image(record: Mapping[str, Any]) -> NDArray[np.uint8]:
    """The image of a record as (H, W, 3) uint8 RGB, on memory of its own.

    Args:
        record: "image" holds encoded bytes or pixels, "name" is what messages call it.

    Raises:
        DataError: the bytes can't be decoded.
    """
    image = record["image"]
    return decode_image(image, record["name"]) if isinstance(image, bytes) else image


def decode_image(data: bytes, where: str, max_pixels: int | None = None) -> NDArray[np.uint8]:
    """An encoded image as (H, W, 3) uint8 RGB, on memory of its own; alpha is dropped.

    Args:
        data: the whole file.
        where: what messages call it.
        max_pixels: refused above; None for no limit.

    Raises:
        DataError: no image, damaged, or too large.
    """
    image = open_image(data, where, max_pixels)
    load_pixels(image, where)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))
