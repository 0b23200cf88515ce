"""Boxes drawn on a picture, with the names of their classes where there is room."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from hatcli.report.pictures import Palette

TEXT = 12  # height of a tag's text in pixels
PAD = 2
DASH = 5

Rectangle = tuple[int, int, int, int]  # left, top, right, bottom
Color = tuple[int, int, int]

# Colours that the eye tells apart (Sasha Trubetskoy's twenty, the darkest last).
DISTINCT: Palette = (
    (230, 25, 75),
    (60, 180, 75),
    (255, 225, 25),
    (0, 130, 200),
    (245, 130, 48),
    (145, 30, 180),
    (70, 240, 240),
    (240, 50, 230),
    (210, 245, 60),
    (250, 190, 212),
    (0, 128, 128),
    (220, 190, 255),
    (170, 110, 40),
    (255, 250, 200),
    (170, 255, 195),
    (255, 215, 180),
    (128, 128, 128),
    (128, 128, 0),
    (128, 0, 0),
    (0, 0, 128),
)
SHADES = (1.0, 0.6, 1.6)  # brightness of the first twenty, of the next, and so on


def distinct_palette(num_classes: int, shown: Sequence[int]) -> list[Color]:
    """Colours for classes that have none of their own.

    Args:
        num_classes: how many colours.
        shown: classes that occur, which get the most distinct colours; up to twenty classes
            always have the same.
    """
    order = list(range(num_classes))
    if num_classes > len(DISTINCT):
        order = [*shown, *(label for label in order if label not in set(shown))]
    palette: list[Color] = [(0, 0, 0)] * num_classes
    for place, label in enumerate(order):
        shade = SHADES[place // len(DISTINCT) % len(SHADES)]
        red, green, blue = DISTINCT[place % len(DISTINCT)]
        palette[label] = (_shaded(red, shade), _shaded(green, shade), _shaded(blue, shade))
    return palette


def draw_boxes(
    image: Image.Image,
    boxes: NDArray[np.floating],
    colors: Sequence[Color],
    tags: Sequence[str],
    broken: Sequence[bool],
) -> None:
    """Draw boxes into an image, then their tags, those of large boxes first.

    A tag stands above its box, in it or below it, where it covers no other; one that finds no
    room is left out.

    Args:
        boxes: (N, 4) left, top, right, bottom in pixels of the image.
        colors: RGB of each box.
        tags: text of each box.
        broken: which boxes get a broken line.
    """
    draw = ImageDraw.Draw(image)
    edges = [_pixels(box, image.size) for box in boxes.tolist()]
    order = np.argsort([-(right - left) * (low - top) for left, top, right, low in edges])
    for index in order:
        _outline(draw, edges[index], colors[index], broken=broken[index])
    font = ImageFont.load_default(TEXT)
    taken: list[Rectangle] = []
    for index in order:
        width = round(font.getlength(tags[index])) + 2 * PAD
        place = _find_room(edges[index], (width, TEXT + 2 * PAD), image.size, taken)
        if place is None:
            continue
        taken.append(place)
        draw.rectangle((*place[:2], place[2] - 1, place[3] - 1), fill=colors[index])
        middle = (place[0] + PAD, (place[1] + place[3]) / 2)
        draw.text(middle, tags[index], fill=ink_on(colors[index]), font=font, anchor="lm")


def ink_on(color: Color) -> Color:
    """Black or white, whichever can be read on a colour."""
    red, green, blue = color
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else (255, 255, 255)


def _shaded(level: int, shade: float) -> int:
    """Darker towards black below 1, lighter towards white above."""
    return round(level * shade if shade <= 1 else 255 - (255 - level) / shade**2)


def _pixels(box: Sequence[float], size: tuple[int, int]) -> Rectangle:
    """The outermost pixels of a box that lie in the image."""
    left, top, right, low = (round(edge) for edge in box)
    width, height = size
    left, top = min(max(left, 0), width - 1), min(max(top, 0), height - 1)
    return left, top, min(max(right - 1, left), width - 1), min(max(low - 1, top), height - 1)


def _outline(draw: ImageDraw.ImageDraw, edges: Rectangle, color: Color, *, broken: bool) -> None:
    left, top, right, low = edges
    if not broken:
        draw.rectangle(edges, outline=ink_on(color), width=3)  # a rim that shows on any ground
        draw.rectangle(edges, outline=color, width=2)
        return
    for x in range(left, right + 1, 2 * DASH):
        for y in (top, low):
            draw.line((x, y, min(x + DASH, right), y), fill=color, width=2)
    for y in range(top, low + 1, 2 * DASH):
        for x in (left, right):
            draw.line((x, y, x, min(y + DASH, low)), fill=color, width=2)


def _find_room(
    edges: Rectangle, tag: tuple[int, int], size: tuple[int, int], taken: Sequence[Rectangle]
) -> Rectangle | None:
    width, height = tag
    most = max(size[0] - width, 0)
    left, right = min(edges[0], most), min(max(edges[2] + 1 - width, 0), most)
    top, low = edges[1], edges[3] + 1
    for x, y in (
        (left, top - height),
        (left, top),
        (right, top - height),
        (right, top),
        (left, low),
        (left, low - height),
        (right, low - height),
        (right, low),
    ):
        place = (x, y, x + width, y + height)
        inside = y >= 0 and place[2] <= size[0] and place[3] <= size[1]
        if inside and not any(_overlap(place, other) for other in taken):
            return place
    return None


def _overlap(first: Rectangle, second: Rectangle) -> bool:
    return (
        first[0] < second[2]
        and second[0] < first[2]
        and first[1] < second[3]
        and second[1] < first[3]
    )
