"""Looks at images and label maps before they go into a pack, with Pillow."""

import io
import os
import struct
import threading
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from hatcli.data.packers._headers import PNG_MAGIC, glance
from hatcli.errors import DataError, UsageError, start_of

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
_16_BIT_MODES = ("I;16", "I;16B", "I;16L")
_PNG_GREY, _PNG_PALETTE = 0, 3
_EXIF_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
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
        is_deep: whether it has 16 bits a channel.
        image: opened by Pillow, and decoded when that was asked for; None after a mere glance.
    """

    format: str
    width: int
    height: int
    colors: str
    is_rotated: bool
    is_deep: bool
    image: Image.Image | None


def look_at_image(
    data: bytes, where: str, *, max_pixels: int, check: str, allow_16bit: bool = False
) -> Picture:
    """What an encoded image is, checked.

    Args:
        data: the whole file.
        where: what messages call it.
        max_pixels: refused above, before anything is decoded.
        check: "decode" decodes all pixels, which finds damage that nothing else shows; "header"
            takes the header and the checksums of a PNG; "none" reads format and size only.
        allow_16bit: whether 16 bits a channel are accepted.

    Raises:
        DataError: no image, damaged, too large, animated, or more bits a channel than allowed.
    """
    if check == "none" and (head := glance(data)) is not None:
        _check_size(head.width * head.height, where, max_pixels)
        return Picture(*head, is_rotated=False, is_deep=False, image=None)
    image = open_image(data, where, max_pixels)
    if data.startswith(PNG_MAGIC) and check != "none":
        _check_png(data, where)
    # Pillow opens a PNG of 16 bits in colour as one of 8, without a word.
    is_deep = image.mode in _16_BIT_MODES or (data.startswith(PNG_MAGIC) and data[24] == 16)
    if not (allow_16bit if is_deep else image.mode in _8_BIT_MODES):
        hint = "--allow-16bit takes the upper 8" if is_deep else "convert it to 8 bits first"
        raise DataError(f"image has more than 8 bits a channel: {where}", hint)
    is_rotated = check != "none" and _look_inside(image, where, decode=check == "decode")
    kind = "jpeg" if image.format == "MPO" else str(image.format).lower()
    colors = _8_BIT_MODES.get(image.mode, "grey")
    return Picture(kind, *image.size, colors, is_rotated, is_deep, image)


def read_label_png(
    data: bytes, where: str, *, max_pixels: int, palette: bool = False
) -> np.ndarray:
    """The raw values of a label map.

    Args:
        data: the whole file.
        where: what messages call it.
        max_pixels: refused above, before anything is decoded.
        palette: whether a palette is allowed, whose indices are the values, whatever its colours.

    Returns:
        (H, W) uint8 or uint16, C order.

    Raises:
        DataError: damaged, or not a single-channel PNG of 8 or 16 bits; in all others, libraries
            disagree about the values.
    """
    image = open_image(data, where, max_pixels)
    is_png = data.startswith(PNG_MAGIC)
    has_values = is_png and data[24] in (8, 16) and data[25] == _PNG_GREY
    if not has_values and not (palette and is_png and data[25] == _PNG_PALETTE):
        kinds = "palette or " if palette else ""
        raise DataError(
            f"label must be {kinds}8-bit or 16-bit single channel PNG, "
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
        options: a packer's; "image_format", "check", "max_pixels" and, where they are there,
            "allow_16bit" and "apply_exif" say what to do.

    Returns:
        {"image", "image_format", "height", "width"}, and 1 for each of "count.jpeg",
        "count.grey", "count.exif_rotated" and so on that holds.

    Raises:
        DataError: as in `look_at_image`.
    """
    policy, quality = parse_image_format(options["image_format"])
    # Other policies than keeping the bytes need the pixels, and so check them.
    check = options["check"] if policy == "source" else "decode"
    if check == "none" and options.get("apply_exif"):
        check = "header"
    picture = look_at_image(
        data,
        where,
        max_pixels=options["max_pixels"],
        check=check,
        allow_16bit=options.get("allow_16bit", False),
    )
    kinds = Counter({f"count.{picture.format}": 1})
    if picture.colors != "rgb":
        kinds[f"count.{picture.colors}"] = 1
    changed = _change(picture, where, options, kinds)
    if changed is None and policy == "source":
        stored: bytes | np.ndarray = data
        stored_format, (width, height) = picture.format, (picture.width, picture.height)
    else:
        image = changed or picture.image
        assert image is not None  # it was opened, since it is decoded
        width, height = image.size
        stored, stored_format = _store(image, policy, quality)
    fields = {"image": stored, "image_format": stored_format, "height": height, "width": width}
    return fields, kinds


def describe_image_fields(image_format: str) -> dict[str, dict[str, Any]]:
    """The types of the fields that `take_image` gives."""
    image: dict[str, Any] = {"type": "bytes", "required": True}
    if image_format in ("raw", "strips"):
        image = {"type": "ndarray", "dtype": "|u1", "codec": image_format, "required": True}
    return {
        "image": image,
        "image_format": {"type": "str", "required": True},
        "height": {"type": "int", "required": True},
        "width": {"type": "int", "required": True},
    }


def parse_image_format(text: str) -> tuple[str, int]:
    """'source', 'raw', 'strips' or 'jpeg:95' -> (policy, quality); quality is 0 without JPEG.

    Raises:
        UsageError: none of these.
    """
    policy, _, quality = text.partition(":")
    if policy in ("source", "raw", "strips") and not quality and text == policy:
        return policy, 0
    if policy == "jpeg" and quality.isdecimal() and 1 <= int(quality) <= 100:
        return policy, int(quality)
    raise UsageError(
        f"image format {text!r} unknown; choose source, raw, strips, jpeg:Q with Q 1 to 100"
    )


def as_rgb(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a decoded image; alpha is dropped."""
    return np.asarray(image.convert("RGB"))


def as_jpeg(image: Image.Image, quality: int) -> bytes:
    """A decoded image as a JPEG file, without metadata."""
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=quality, subsampling="4:2:0")
    return file.getvalue()


def as_png(image: Image.Image) -> bytes:
    """A decoded image as a PNG file of 8 bits, grey or RGB, without metadata."""
    plain = image if image.mode in ("L", "RGB") else image.convert("RGB")
    file = io.BytesIO()
    Image.fromarray(np.asarray(plain)).save(file, "PNG")
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
            if data.startswith(PNG_MAGIC):
                _check_png(data, where)
            raise DataError(f"not an image ({start_of(data[:8])}): {where}") from error
        except _DECODE_ERRORS as error:
            raise DataError(f"{_damage(error)}: {where}") from error
    _check_size(image.width * image.height, where, max_pixels)
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


def _change(
    picture: Picture, where: str, options: Mapping[str, Any], kinds: Counter[str]
) -> Image.Image | None:
    """The picture with 8 bits and upright, where that is asked for and isn't so; else None."""
    image = picture.image
    if image is None:
        return None
    changed = None
    if picture.is_deep:
        kinds["count.16bit"] = 1
        load_pixels(image, where)
        is_grey = image.mode in _16_BIT_MODES
        changed = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)) if is_grey else image
    turn = None
    if picture.is_rotated and options.get("apply_exif"):
        turn = _TURNS.get(image.getexif().get(_EXIF_ORIENTATION, 1))
    if turn is not None:
        kinds["count.exif_applied"] = 1
        load_pixels(image, where)
        return (changed or image).transpose(turn)
    if picture.is_rotated:
        kinds["count.exif_rotated"] = 1
    return changed


def _store(image: Image.Image, policy: str, quality: int) -> tuple[bytes | np.ndarray, str]:
    """A decoded image as a policy wants it, and what that is called."""
    if policy in ("raw", "strips"):
        return as_rgb(image), policy
    if policy == "jpeg":
        return as_jpeg(image, quality), "jpeg"
    return as_png(image), "png"


def _check_size(pixels: int, where: str, max_pixels: int | None) -> None:
    if max_pixels is not None and pixels > max_pixels:
        sizes = f"{pixels / 1e6:.4g} Mpx exceeds --max-pixels {max_pixels / 1e6:.4g} Mpx"
        raise DataError(f"{sizes}: {where}")


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
    with _limits_lock:  # both are the process's, and threads of a loader come here at once
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


_limits_lock = threading.Lock()
os.register_at_fork(
    before=_limits_lock.acquire,
    after_in_parent=_limits_lock.release,
    after_in_child=_limits_lock.release,
)


def _check_png(data: bytes, where: str) -> None:
    """Compare the checksum of each chunk; Pillow skips those of the pixels."""
    position = len(PNG_MAGIC)
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
