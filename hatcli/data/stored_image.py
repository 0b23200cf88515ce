"""An image as it is stored, of which only what is used is decoded."""

from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hatcli.data.jpeg import SHRINKS, JpegHead, decode_upper_rows, read_jpeg_head
from hatcli.data.packers._images import load_pixels, open_image
from hatcli.errors import DataError


class Rows(Protocol):
    """Pixels that can be had row by row; see `Strips` and `RawRows`."""

    shape: tuple[int, ...]

    def rows(self, top: int, stop: int) -> NDArray[np.uint8]:
        """Rows ``top`` to ``stop - 1``."""
        ...


class StoredImage:
    """An RGB image that isn't decoded yet.

    What it is made of may be a view into a pack, so it must not outlive the sample's reading.

    Attributes:
        height: in pixels.
        width: in pixels.
        shape: (height, width, 3), as of its pixels.
        dtype: uint8.

    Args:
        stored: an encoded file, or pixels that can be had row by row.
        where: what messages call it.
        size: height and width, where they are known beforehand.
        max_pixels: refused above; None for no limit.

    Raises:
        DataError: the head of the file is damaged, the image is too large, or pixels aren't
            (H, W, 3).
    """

    dtype = np.dtype(np.uint8)

    def __init__(
        self,
        stored: bytes | memoryview | Rows,
        where: str,
        size: tuple[int, int] | None = None,
        max_pixels: int | None = None,
    ) -> None:
        self._stored = stored
        self._where = where
        if size is None:
            size = self._find_size(max_pixels)
        self.height, self.width = size
        self.shape = (*size, 3)
        if not isinstance(stored, bytes | memoryview) and stored.shape != self.shape:
            raise DataError(f"image has the shape {stored.shape}, not {self.shape}: {where}")

    @property
    def shrinks(self) -> tuple[int, ...]:
        """By what `region` can shrink, largest first: more than 1 for most JPEG files only."""
        return SHRINKS if self._jpeg_head is not None else (1,)

    def pixels(self) -> NDArray[np.uint8]:
        """The whole image: (H, W, 3) uint8 RGB, on memory of its own, as Pillow decodes it.

        Raises:
            DataError: it is damaged.
        """
        if isinstance(self._stored, bytes | memoryview):
            pixels = decode_image(self._stored, self._where)
            if pixels.shape != self.shape:
                raise DataError(f"image is {pixels.shape}, not {self.shape}: {self._where}")
            return pixels
        return self._rows(self._stored, 0, self.height)

    def region(
        self, top: int, left: int, height: int, width: int, shrink: int = 1
    ) -> NDArray[np.uint8]:
        """A window of the image, for which little more than its rows is decoded.

        Args:
            top: first row of the window.
            left: its first column.
            height: its rows; it lies within the image.
            width: its columns.
            shrink: one of `shrinks`, which divides the other four: a pixel of the result is about
                the mean of a square of that side. 1 gives the pixels as they are.

        Returns:
            (height / shrink, width / shrink, 3) uint8 RGB; rows are not next to each other in
            memory, and others may be between them.

        Raises:
            DataError: it is damaged.
        """
        stop, right = top + height, left + width
        if not 0 <= top < stop <= self.height or not 0 <= left < right <= self.width:
            raise ValueError(f"window {(top, left, height, width)} of an image {self.shape}")
        if shrink not in self.shrinks or any(n % shrink for n in (top, left, height, width)):
            raise ValueError(f"window {(top, left, height, width)} can't be shrunk by {shrink}")
        columns = slice(left // shrink, right // shrink)
        if not isinstance(self._stored, bytes | memoryview):
            return self._rows(self._stored, top, stop)[:, columns]
        head = self._jpeg_head
        if head is None:
            return self.pixels()[top:stop, columns]
        pixels = decode_upper_rows(self._stored, head, stop, self._where, shrink=shrink)
        return pixels[top // shrink : stop // shrink, columns]

    @cached_property
    def _jpeg_head(self) -> JpegHead | None:
        if not isinstance(self._stored, bytes | memoryview):
            return None
        head = read_jpeg_head(self._stored)
        if head is not None and (head.height, head.width) != (self.height, self.width):
            found = head.height, head.width
            raise DataError(f"image is {found}, not {self.shape[:2]}: {self._where}")
        return head

    def _rows(self, stored: Rows, top: int, stop: int) -> NDArray[np.uint8]:
        try:
            return stored.rows(top, stop)
        except DataError as error:
            raise DataError(f"{error.message}: {self._where}") from error

    def _find_size(self, max_pixels: int | None) -> tuple[int, int]:
        if not isinstance(self._stored, bytes | memoryview):
            height, width = self._stored.shape[:2]
            return height, width
        image = open_image(bytes(self._stored), self._where, max_pixels)
        return image.height, image.width


def decode_image(
    data: bytes | memoryview, where: str, max_pixels: int | None = None
) -> NDArray[np.uint8]:
    """An encoded image as (H, W, 3) uint8 RGB, on memory of its own; alpha is dropped.

    Args:
        data: the whole file.
        where: what messages call it.
        max_pixels: refused above; None for no limit.

    Raises:
        DataError: no image, damaged, or too large.
    """
    image = open_image(bytes(data), where, max_pixels)
    load_pixels(image, where)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))
