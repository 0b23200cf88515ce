"""Looks at images and label maps before they go into a pack, with Pillow."""

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from hatcli.errors import DataError, UsageError

MAX_PIXELS = 100_000_000

_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")
_8_BIT_MODES = {
    "RGB": "rgb",
    "L": "grey",
    "1": "grey",
    "LA": "grey+alpha",
    "RGBA": "rgb+alpha",
    "RGBX": "rgb",
    "P": "palette",
    "PA": "palette",
    "CMYK": "cmyk",
    "YCbCr": "rgb",
}
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_PNG_GREY = 0
_EXIF_ORIENTATION = 0x0112
_DECODE_ERRORS = (
    OSError,
    SyntaxError,  # Pillow's own word for a damaged PNG
    ValueError,
    TypeError,
    IndexError,
    EOFError,
    OverflowError,
    struct.error,
    zlib.error,
)


class Picture(NamedTuple):
    """An image that was looked at.

    Attributes:
        format: "png", "jpeg", ... by its bytes, whatever the file is called.
        colors: "rgb", "grey", "cmyk", "palette", "rgb+alpha" or "grey+alpha".
        is_rotated: whether its EXIF says that it should be shown turned or mirrored.
        image: the decoded image, when that was asked for.
    """

    format: str
    width: int
    height: int
    colors: str
    is_rotated: bool
    image: Image.Image | None


def look_at_image(data: bytes, where: str, *, max_pixels: int, check: str) -> Picture:
    """What an encoded image is, checked.

    Args:
        data: the whole file.
        where: what messages call it.
        max_pixels: refused above, before anything is decoded.
        check: "decode" decodes all pixels, which finds damage that nothing else shows; "header"
            takes the header and the checksums of a PNG; "none" reads format and size only.

    Raises:
        DataError: no image, damaged, too large, animated, or more than 8 bits a channel.
    """
    image = _open(data, where, max_pixels)
    if data.startswith(_PNG_MAGIC) and check != "none":
        _check_png(data, where)
    deep = data.startswith(_PNG_MAGIC) and data[24] == 16
    if deep or image.mode not in _8_BIT_MODES:
        raise DataError(
            f"image has more than 8 bits a channel: {where}", "convert it to 8 bits first"
        )
    is_rotated = check != "none" and _look_inside(image, where, decode=check == "decode")
    kind = "jpeg" if image.format == "MPO" else str(image.format).lower()
    decoded = image if check == "decode" else None
    return Picture(kind, *image.size, _8_BIT_MODES[image.mode], is_rotated, decoded)


def read_label_png(data: bytes, where: str, *, max_pixels: int) -> np.ndarray:
    """The raw values of a label map.

    Args:
        data: the whole file.
        where: what messages call it.
        max_pixels: refused above, before anything is decoded.

    Returns:
        (H, W) uint8 or uint16, C order.

    Raises:
        DataError: damaged, or not a single-channel PNG of 8 or 16 bits; in all others, libraries
            disagree about the values.
    """
    image = _open(data, where, max_pixels)
    if not data.startswith(_PNG_MAGIC) or data[24] not in (8, 16) or data[25] != _PNG_GREY:
        raise DataError(
            "label must be 8-bit or 16-bit single channel PNG, "
            f"got {image.format} {image.mode}: {where}"
        )
    _check_png(data, where)
    try:
        image.load()
    except _DECODE_ERRORS as error:
        raise DataError(f"{_damage(error)}: {where}") from error
    values = np.asarray(image)
    return values.astype(np.uint16) if data[24] == 16 else values


def parse_image_format(text: str) -> tuple[str, int]:
    """'source', 'raw' or 'jpeg:95' -> (policy, quality); quality is 0 without JPEG.

    Raises:
        UsageError: none of these.
    """
    policy, _, quality = text.partition(":")
    if policy in ("source", "raw") and not quality and text == policy:
        return policy, 0
    if policy == "jpeg" and quality.isdecimal() and 1 <= int(quality) <= 100:
        return policy, int(quality)
    raise UsageError(f"image format {text!r} unknown; choose source, raw, jpeg:Q with Q 1 to 100")


def as_rgb(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a decoded image; alpha is dropped."""
    return np.asarray(image.convert("RGB"))


def as_jpeg(image: Image.Image, quality: int) -> bytes:
    """A decoded image as a JPEG file, without metadata."""
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=quality, subsampling="4:2:0")
    return file.getvalue()


def _look_inside(image: Image.Image, where: str, *, decode: bool) -> bool:
    """Whether viewers would turn it; refuses animations and, when decoding, damage."""
    try:
        if getattr(image, "n_frames", 1) > 1:
            raise DataError(f"more than one frame: {where}")
        if decode:
            image.load()
        return image.getexif().get(_EXIF_ORIENTATION, 1) != 1
    except _DECODE_ERRORS as error:
        raise DataError(f"{_damage(error)}: {where}") from error


def _open(data: bytes, where: str, max_pixels: int) -> Image.Image:
    if not data:
        raise DataError(f"empty file: {where}")
    with _own_pixel_limit():
        try:
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
        except UnidentifiedImageError as error:
            if data.startswith(_PNG_MAGIC):
                _check_png(data, where)
            raise DataError(f"not an image (starts with {data[:8]!r}): {where}") from error
        except _DECODE_ERRORS as error:
            raise DataError(f"{_damage(error)}: {where}") from error
    pixels = image.width * image.height
    if pixels > max_pixels:
        sizes = f"{pixels / 1e6:.4g} Mpx exceeds --max-pixels {max_pixels / 1e6:.4g} Mpx"
        raise DataError(f"{sizes}: {where}")
    return image


@contextmanager
def _own_pixel_limit() -> Iterator[None]:
    """Without Pillow's limit, which only warns up to twice its value; ours follows at once."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _check_png(data: bytes, where: str) -> None:
    """Compare the checksum of each chunk; Pillow skips those of the pixels."""
    position = len(_PNG_MAGIC)
    view = memoryview(data)
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data):
            raise DataError(
                f"image is truncated (at least {end - len(data)} bytes missing): {where}"
            )
        (checksum,) = struct.unpack_from(">I", data, end - 4)
        if zlib.crc32(view[position + 4 : end - 4]) != checksum:
            name = kind.decode("latin-1")
            shown = name if name.isalpha() else repr(kind)
            raise DataError(f"damaged PNG ({shown} checksum): {where}")
        if kind == b"IEND":
            return
        position = end
    raise DataError(f"image is truncated (no end mark): {where}")


def _damage(error: Exception) -> str:
    if "truncated" in str(error):
        return f"image is truncated ({error})"
    return f"damaged image ({error})"
