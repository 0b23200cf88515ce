"""Pictures of images, label maps and predictions."""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from hatcli.errors import HatError

Picture = NDArray[np.uint8]
LabelMap = NDArray[np.integer]
Palette = Sequence[tuple[int, int, int]]

GAP = 4  # white pixels between two panels
TEXT = 14  # height of the text in a legend, in pixels
IGNORED = "ignored"  # what a legend calls the black of pixels that are no class


def colorize(label: LabelMap, palette: Palette) -> Picture:
    """A label map in the colours of its classes.

    Args:
        label: (H, W) of any integer type, class indices.
        palette: RGB, 0 to 255, of each class.

    Returns:
        (H, W, 3) uint8; what is no class, as 255, is black.
    """
    colors = np.zeros((len(palette) + 1, 3), np.uint8)
    colors[:-1] = palette
    return colors[_classes(label, palette)]


def overlay(image: Picture, label: LabelMap, palette: Palette, *, strength: float = 0.5) -> Picture:
    """An image with its label map laid over it.

    Args:
        image: (H, W, 3) uint8 RGB.
        label: of any size; each pixel takes the nearest index. What is no class stays clear.
        strength: share of the class's colour, 0 to 1.

    Returns:
        (H, W, 3) uint8.
    """
    classes = _classes(_at_size(label, image.shape[:2]), palette) << 8
    levels = np.arange(256, dtype=np.float32)
    mixed = np.empty_like(image, order="C")
    for channel in range(3):  # by a table of each class and level: ten times as fast as by pixels
        colors = np.array([color[channel] for color in palette], np.float32)
        table = np.rint(levels * (1 - strength) + colors[:, None] * strength)
        table = np.vstack([table, levels]).astype(np.uint8)
        mixed[..., channel] = table.ravel()[classes | image[..., channel]]
    return mixed


def side_by_side(
    image: Picture,
    prediction: LabelMap,
    label: LabelMap | None,
    palette: Palette,
    *,
    names: Sequence[str] | None = None,
) -> Picture:
    """An image, what was predicted and, if it is known, what is right.

    Args:
        image: (H, W, 3) uint8 RGB.
        prediction: class indices of any size, such as (H / 4, W / 4); enlarged to the nearest.
        label: the same; None = two panels only.
        names: of the classes, for a legend of those that occur, and for titles above the panels;
            None = neither.

    Returns:
        (H or more, 2 or 3 times W and gaps, 3) uint8.
    """
    maps = [prediction] if label is None else [prediction, label]
    maps = [_at_size(indices, image.shape[:2]) for indices in maps]
    gap = np.full((image.shape[0], GAP, 3), 255, np.uint8)
    panels = [image]
    for indices in maps:
        panels += [gap, colorize(indices, palette)]
    picture = np.concatenate(panels, axis=1)
    if names is None:
        return picture
    shown = np.unique(np.concatenate([_classes(indices, palette).ravel() for indices in maps]))
    titled = with_titles(picture, ["image", "prediction", "label"][: len(maps) + 1])
    return with_legend(titled, palette, names, shown=shown.tolist())


def with_titles(picture: Picture, titles: Sequence[str]) -> Picture:
    """A picture of panels side by side with a title above each.

    Args:
        picture: (H, W, 3) uint8, of as many panels as titles, of one width, `GAP` pixels apart.

    Returns:
        (H and the titles, W, 3) uint8.
    """
    font = ImageFont.load_default(TEXT)
    width = (picture.shape[1] + GAP) // len(titles) - GAP
    above = Image.new("RGB", (picture.shape[1], TEXT + 12), (255, 255, 255))
    for place, title in enumerate(titles):
        words = Image.new("RGB", (width, above.height), (255, 255, 255))  # cut at its panel's end
        middle = (4, above.height // 2)
        ImageDraw.Draw(words).text(middle, title, fill=(0, 0, 0), font=font, anchor="lm")
        above.paste(words, (place * (width + GAP), 0))
    return np.concatenate([np.asarray(above), picture])


def with_legend(
    picture: Picture,
    palette: Palette,
    names: Sequence[str],
    *,
    shown: Sequence[int] | None = None,
) -> Picture:
    """A picture with coloured squares and class names below it.

    Args:
        picture: (H, W, 3) uint8.
        shown: which classes to name, with the number behind the last for what is no class; None =
            all classes.

    Returns:
        (H and the legend, W, 3) uint8; names that don't fit into one row go to the next.
    """
    font = ImageFont.load_default(TEXT)
    called, colors = [*names, IGNORED], [*map(tuple, palette), (0, 0, 0)]
    places, x, y = [], 0, 0
    for index in range(len(names)) if shown is None else shown:
        width = TEXT + 6 + int(font.getlength(called[index])) + 14
        if x and x + width > picture.shape[1]:
            x, y = 0, y + TEXT + 8
        places.append((x, y, index))
        x += width
    below = Image.new("RGB", (picture.shape[1], y + TEXT + 12), (255, 255, 255))
    draw = ImageDraw.Draw(below)
    for left, top, index in places:
        square = (left + 4, top + 6, left + 4 + TEXT, top + 6 + TEXT)
        draw.rectangle(square, fill=colors[index], outline=(0, 0, 0))
        middle = (left + TEXT + 10, top + 6 + TEXT // 2)
        draw.text(middle, called[index], fill=(0, 0, 0), font=font, anchor="lm")
    return np.concatenate([picture, np.asarray(below)])


def write_png(path: Path, picture: Picture) -> None:
    """Write a picture, (H, W, 3) or (H, W) uint8; its folder is made if it is missing.

    Raises:
        HatError: the disk doesn't take it; an older file of that name is left as it was.
    """
    write_image(path, Image.fromarray(picture), "png")


def write_image(path: Path, image: Image.Image, kind: str, **options: Any) -> None:
    """Write an image of Pillow; its folder is made if it is missing.

    Args:
        kind: "png" or "jpeg".
        options: of Pillow's writer of that kind.

    Raises:
        HatError: the disk doesn't take it; an older file of that name is left as it was.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(partial, format=kind, **options)
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):  # it may not be there, nor its folder
            partial.unlink()
        raise HatError(f"{path}: cannot write it: {error.strerror or error}") from error


def _classes(label: LabelMap, palette: Palette) -> NDArray[np.integer]:
    """Class indices, with one index behind the last for all that is no class."""
    return np.where((label >= 0) & (label < len(palette)), label, len(palette)).astype(np.intp)


def _at_size(label: LabelMap, shape: tuple[int, ...]) -> LabelMap:
    """A label map at (height, width); the index at the pixel's centre."""
    if label.shape == shape:
        return label
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.intp)
        for new, old in zip(shape, label.shape, strict=True)
    )
    return label[rows[:, None], columns]
