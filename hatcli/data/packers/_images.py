"""Looks at images and label maps before they go into a pack, with Pillow."""

import io
import struct
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

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
    image = open_image(data, where, max_pixels)
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
    image = open_image(data, where, max_pixels)
    if not data.startswith(_PNG_MAGIC) or data[24] not in (8, 16) or data[25] != _PNG_GREY:
        raise DataError(
            "label must be 8-bit or 16-bit single channel PNG, "
            f"got {image.format} {image.mode}: {where}"
        )
    _check_png(data, where)
    load_pixels(image, where)
    values = np.asarray(image)
    return values.astype(np.uint16) if data[24] == 16 else values


def take_image(
    data: bytes, where: str, options: Mapping[str, Any]
) -> tuple[dict[str, Any], Counter[str]]:
    """The image fields of a sample, and of what kind the image is.

    Args:
        data: the whole file.
        where: what messages call it.
        options: a packer's; "image_format", "check" and "max_pixels" say what to do.

    Returns:
        {"image", "image_format", "height", "width"}, and 1 for each of "count.jpeg",
        "count.grey", "count.exif_rotated" and so on that holds.

    Raises:
        DataError: as in `look_at_image`.
    """
    policy, quality = parse_image_format(options["image_format"])
    # Other policies than keeping the bytes need the pixels, and so check them.
    check = options["check"] if policy == "source" else "decode"
    picture = look_at_image(data, where, max_pixels=options["max_pixels"], check=check)
    kinds = Counter({f"count.{picture.format}": 1})
    if picture.colors != "rgb":
        kinds[f"count.{picture.colors}"] = 1
    if picture.is_rotated:
        kinds["count.exif_rotated"] = 1
    stored: bytes | np.ndarray = data
    stored_format = picture.format
    if picture.image is not None and policy == "raw":
        stored, stored_format = as_rgb(picture.image), "raw"
    elif picture.image is not None and policy == "jpeg":
        stored, stored_format = as_jpeg(picture.image, quality), "jpeg"
    fields = {
        "image": stored,
        "image_format": stored_format,
        "height": picture.height,
        "width": picture.width,
    }
    return fields, kinds


def describe_image_fields(image_format: str) -> dict[str, dict[str, Any]]:
    """The types of the fields that `take_image` gives."""
    image: dict[str, Any] = {"type": "bytes", "required": True}
    if image_format == "raw":
        image = {"type": "ndarray", "dtype": "|u1", "codec": "raw", "required": True}
    return {
        "image": image,
        "image_format": {"type": "str", "required": True},
        "height": {"type": "int", "required": True},
        "width": {"type": "int", "required": True},
    }


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


def open_image(data: bytes, where: str, max_pixels: int | None) -> Image.Image:
    """An encoded image, its header read and nothing decoded.

    Args:
        data: the whole file.
        where: what messages call it.
        max_pixels: refused above; None for no limit.

    Raises:
        DataError: no image, or too large.
    """
    if not data:
        raise DataError(f"empty file: {where}")
    with _own_limits():
        try:
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
        except UnidentifiedImageError as error:
            if data.startswith(_PNG_MAGIC):
                _check_png(data, where)
            raise DataError(f"not an image (starts with {data[:8]!r}): {where}") from error
        except _DECODE_ERRORS as error:
            raise DataError(f"{_damage(error)}: {where}") from error
    pixels = image.width * image.height
    if max_pixels is not None and pixels > max_pixels:
        sizes = f"{pixels / 1e6:.4g} Mpx exceeds --max-pixels {max_pixels / 1e6:.4g} Mpx"
        raise DataError(f"{sizes}: {where}")
    return image


def load_pixels(image: Image.Image, where: str) -> None:
    """Decode an opened image, in place.

    Raises:
        DataError: it is damaged.
    """
    try:
        image.load()
    except _DECODE_ERRORS as error:
        raise DataError(f"{_damage(error)}: {where}") from error


def _look_inside(image: Image.Image, where: str, *, decode: bool) -> bool:
    """Whether viewers would turn it; refuses animations and, when decoding, damage."""
    try:
        # The further frames of an MPO are other views of the picture, which JPEG readers ignore.
        if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
            raise DataError(f"more than one frame: {where}")
    except _DECODE_ERRORS as error:
        raise DataError(f"{_damage(error)}: {where}") from error
    if decode:
        load_pixels(image, where)
    with _own_limits():
        try:
            return image.getexif().get(_EXIF_ORIENTATION, 1) != 1
        except _DECODE_ERRORS:  # broken notes, as some cameras write; the picture is whole
            return False


@contextmanager
def _own_limits() -> Iterator[None]:
    """Without Pillow's pixel limit, which only warns up to twice its value; ours follows at once.

    Without its warnings either: they are about notes such as EXIF, which don't change a pixel.
    """
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
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
