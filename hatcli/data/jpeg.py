"""The upper rows of a JPEG, at its size or at a half, quarter or eighth of it.

A JPEG can't be entered in the middle, but left early: with a smaller height in its head, decoders
stop there and pass over the rest. The rows that they give are those of the whole image to the
bit. simplejpeg decodes where it is installed (the extra "fast"), else Pillow; at full size both
give the same pixels.
"""

import struct
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hatcli.data.packers._images import load_pixels, open_image
from hatcli.errors import DataError

simplejpeg: Any = import_module("simplejpeg") if find_spec("simplejpeg") else None

SHRINKS = (8, 4, 2, 1)  # of a block of 8 x 8 pixels, a cosine transform can give these parts

_START, _END = b"\xff\xd8\xff", b"\xff\xd9"
_BASELINE = (0xC0, 0xC1)
_SCAN = 0xDA
_SKIPPED = frozenset({0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)})  # tables and notes
_BLOCK_ROWS = 16  # rows that are decoded together in most files; of no file is it less than 8
_CONTEXT_ROWS = 2  # below a row, by which its colours are smoothed


class JpegHead(NamedTuple):
    """What has to be known to leave a JPEG early.

    Attributes:
        height: in pixels.
        width: in pixels.
        height_at: offset of the two bytes that hold the height.
    """

    height: int
    width: int
    height_at: int


def read_jpeg_head(data: bytes | memoryview) -> JpegHead | None:
    """The head of a file that can be left early; None for any other.

    That is a baseline JPEG, grey or with three colours, of 8 bits and in one scan, which ends
    with an end mark: whether others are whole, only Pillow can tell.
    """
    view = memoryview(data)
    if view[:3] != _START or view[-2:] != _END:
        return None
    frame, position = None, 2
    try:
        while view[position] == 0xFF:
            marker, length = struct.unpack_from(">BH", view, position + 1)
            if marker in _BASELINE and frame is None:
                bits, height, width, components = struct.unpack_from(">BHHB", view, position + 4)
                if bits != 8 or components not in (1, 3) or not height or not width:
                    return None
                frame = JpegHead(height, width, position + 5)
            elif marker == _SCAN:
                one_scan = frame and view[position + 4] == components
                return frame if one_scan else None
            elif marker not in _SKIPPED:
                return None
            position += 2 + length
    except (IndexError, struct.error):  # cut within its head
        pass
    return None


def decode_upper_rows(
    data: bytes | memoryview, head: JpegHead, stop: int, where: str, *, shrink: int = 1
) -> NDArray[np.uint8]:
    """At least the rows above ``stop``, as (rows, columns, 3) uint8 RGB on memory of its own.

    Args:
        data: the whole file.
        head: of it.
        stop: behind the last row that is needed, in pixels of the full size.
        where: what messages call the file.
        shrink: one of `SHRINKS`; the result has a pixel for each square of that side.

    Raises:
        DataError: the file is damaged.
    """
    height = -(-(stop + _CONTEXT_ROWS) // _BLOCK_ROWS) * _BLOCK_ROWS
    if height < head.height:
        size = struct.pack(">H", height)
        data = b"".join((data[: head.height_at], size, data[head.height_at + 2 :]))
    else:
        height = head.height
    shape = -(-height // shrink), -(-head.width // shrink), 3
    decode = _with_pillow if simplejpeg is None else _with_simplejpeg
    pixels = decode(data, shape, shrink, where)
    if pixels.shape != shape:
        raise DataError(f"damaged image (its head says {shape}, it has {pixels.shape}): {where}")
    return pixels


def _with_simplejpeg(
    data: bytes | memoryview, shape: tuple[int, int, int], shrink: int, where: str
) -> NDArray[np.uint8]:
    try:
        # Not strict: what is passed over at the end counts as damage.
        return simplejpeg.decode_jpeg(
            data, strict=False, min_height=shape[0], min_width=shape[1], min_factor=shrink
        )
    except ValueError as error:
        raise DataError(f"damaged image ({error}): {where}") from error


def _with_pillow(
    data: bytes | memoryview, shape: tuple[int, int, int], shrink: int, where: str
) -> NDArray[np.uint8]:
    image = open_image(bytes(data), where, None)
    if shrink > 1:
        image.draft(None, (max(image.width // shrink, 1), max(image.height // shrink, 1)))
    load_pixels(image, where)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))
