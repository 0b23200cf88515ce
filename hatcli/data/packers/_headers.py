"""Format, size and colours from the head of an image file, many times faster than Pillow's look.

Only plain JPEG and PNG files are known here; of all others, and of damaged ones, `glance` says
nothing, and Pillow looks at them.
"""

import struct
from typing import NamedTuple

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"

_JPEG_COLORS = {1: "grey", 3: "rgb", 4: "cmyk"}  # by the number of components
_PNG_COLORS = {
    (1, 0): "grey",
    (2, 0): "grey",
    (4, 0): "grey",
    (8, 0): "grey",
    (8, 2): "rgb",
    (1, 3): "palette",
    (2, 3): "palette",
    (4, 3): "palette",
    (8, 3): "palette",
    (8, 4): "grey+alpha",
    (8, 6): "rgb+alpha",
}  # by bits and colour type
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # markers that carry the size
_SEGMENTS = frozenset({0xC4, 0xCC, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)})  # may come before it


class Head(NamedTuple):
    """What an image file says of itself.

    Attributes:
        format: "jpeg" or "png".
        colors: as `_images.Picture` names them.
    """

    format: str
    width: int
    height: int
    colors: str


def glance(data: bytes) -> Head | None:
    """The head of a plain JPEG or PNG file of 8 bits or less a channel; None for anything else."""
    try:
        if data.startswith(b"\xff\xd8\xff"):
            return _glance_at_jpeg(data)
        if data.startswith(PNG_MAGIC):
            return _glance_at_png(data)
    except (IndexError, struct.error):  # it ends too early
        return None
    return None


def _glance_at_jpeg(data: bytes) -> Head | None:
    position = 2
    while data[position] == 0xFF:
        marker, length = struct.unpack_from(">BH", data, position + 1)
        if marker in _FRAMES:
            bits, height, width, components = struct.unpack_from(">BHHB", data, position + 4)
            colors = _JPEG_COLORS.get(components)
            if bits != 8 or not height or not width or colors is None:
                return None
            return Head("jpeg", width, height, colors)
        if marker not in _SEGMENTS or length < 2:
            return None
        position += 2 + length
    return None


def _glance_at_png(data: bytes) -> Head | None:
    length, kind, width, height, bits, color_type = struct.unpack_from(">I4sIIBB", data, 8)
    colors = _PNG_COLORS.get((bits, color_type))
    if kind != b"IHDR" or length != 13 or not width or not height or colors is None:
        return None
    return Head("png", width, height, colors)
