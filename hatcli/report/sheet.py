"""A contact sheet: pictures in rows, with what is known of them drawn on them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from hatcli.report.boxes import draw_boxes
from hatcli.report.pictures import LabelMap, Palette, Picture, overlay

WIDTH = 1200
GAP = 10
MOST_COLUMNS = 6
CAPTION, TITLE, LEGEND = 13, 16, 14  # heights of text in pixels
INK, QUIET, PAPER = (20, 24, 28), (90, 98, 106), (255, 255, 255)
STRIPES = 7  # pixels from one stripe of an ignored area to the next


@dataclass(frozen=True)
class Tile:
    """One picture of a sheet.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        lines: what stands below it, the first in full ink.
        label: (H, W) class at each pixel, laid over the image.
        boxes: (N, 4) left, top, right, bottom in pixels of the image.
        classes: (N,) of the boxes.
        marks: of each box a word for its tag, such as "crowd", whose outline is then broken.
    """

    image: Picture
    lines: Sequence[str]
    label: LabelMap | None = None
    boxes: NDArray[np.floating] = field(default_factory=lambda: np.zeros((0, 4)))
    classes: NDArray[np.integer] = field(default_factory=lambda: np.zeros(0, int))
    marks: Sequence[str] = ()


def contact_sheet(
    tiles: Sequence[Tile],
    names: Sequence[str],
    palette: Palette,
    *,
    title: str,
    hidden: int | None = None,
    strength: float = 0.55,
) -> Picture:
    """The tiles in rows, a title above them and the colours of the classes that occur below.

    Args:
        tiles: at least one.
        names: of the classes.
        palette: RGB, 0 to 255, of each class.
        title: as many lines as it needs.
        hidden: class that gets no colour, as the background.
        strength: share of the class's colour on a labelled pixel, 0 to 1.

    Returns:
        (H, 1200, 3) uint8.
    """
    columns = min(math.ceil(math.sqrt(len(tiles))), MOST_COLUMNS)
    side = (WIDTH - GAP) // columns - GAP
    parts = [_text_block(title)]
    for start in range(0, len(tiles), columns):
        drawn = [
            _draw(tile, side, names, palette, hidden, strength)
            for tile in tiles[start : start + columns]
        ]
        parts.append(_row(drawn, side))
    parts.append(_legend(tiles, names, palette, hidden))
    sheet = Image.new("RGB", (WIDTH, sum(part.height for part in parts)), PAPER)
    top = 0
    for part in parts:
        sheet.paste(part, (0, top))
        top += part.height
    return np.asarray(sheet)


def _draw(
    tile: Tile,
    side: int,
    names: Sequence[str],
    palette: Palette,
    hidden: int | None,
    strength: float,
) -> Image.Image:
    """A tile with its lines, ``side`` pixels wide and as high as it needs."""
    height, width = tile.image.shape[:2]
    scale = side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    smooth = Image.Resampling.NEAREST if scale >= 4 else Image.Resampling.LANCZOS
    picture = np.asarray(Image.fromarray(tile.image).resize(size, smooth))
    if tile.label is not None:
        label = _at_size(tile.label, size)
        ignored = label >= len(palette)
        shown = np.where(label == hidden, len(palette), label) if hidden is not None else label
        picture = _striped(overlay(picture, shown, palette, strength=strength), ignored)
    image = Image.fromarray(picture)
    if len(tile.boxes):
        tags = [
            names[label] + (f" ({mark})" if mark else "")
            for label, mark in zip(tile.classes, tile.marks, strict=True)
        ]
        colors = [palette[label] for label in tile.classes]
        draw_boxes(image, tile.boxes * scale, colors, tags, [bool(m) for m in tile.marks])
    whole = Image.new("RGB", (side, size[1] + len(tile.lines) * (CAPTION + 4) + 6), PAPER)
    whole.paste(image, ((side - size[0]) // 2, 0))
    draw, font = ImageDraw.Draw(whole), ImageFont.load_default(CAPTION)
    for number, line in enumerate(tile.lines):
        place = (side // 2, size[1] + 6 + number * (CAPTION + 4))
        text = shortened(line, font, side)
        draw.text(place, text, fill=QUIET if number else INK, font=font, anchor="mt")
    return whole


def shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """A text that fits, its middle left out: the ends of names tell them apart."""
    if font.getlength(text) <= width:
        return text
    for kept in range(len(text) - 1, 1, -1):
        front = kept // 2
        short = f"{text[:front]}...{text[len(text) - kept + front :]}"
        if font.getlength(short) <= width:
            return short
    return ""


def _row(drawn: Sequence[Image.Image], side: int) -> Image.Image:
    row = Image.new("RGB", (WIDTH, max(tile.height for tile in drawn) + GAP), PAPER)
    for column, tile in enumerate(drawn):
        row.paste(tile, (GAP + column * (side + GAP), 0))
    return row


def _text_block(text: str) -> Image.Image:
    font = ImageFont.load_default(TITLE)
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= WIDTH - 2 * GAP:
            lines[-1] += f" {word}"
        else:
            lines.append(shortened(word, font, WIDTH - 2 * GAP))
    block = Image.new("RGB", (WIDTH, len(lines) * (TITLE + 6) + 2 * GAP), PAPER)
    for number, line in enumerate(lines):
        place = (GAP, GAP + number * (TITLE + 6))
        ImageDraw.Draw(block).text(place, line, fill=INK, font=font, anchor="lt")
    return block


def _legend(
    tiles: Sequence[Tile], names: Sequence[str], palette: Palette, hidden: int | None
) -> Image.Image:
    """Squares and names of the classes that occur, in their order, and one of what is ignored."""
    found: set[int] = set()
    for tile in tiles:
        found.update(np.unique(tile.classes).tolist())
        if tile.label is not None:
            found.update(np.unique(tile.label).tolist())
    entries: list[tuple[str, Picture]] = []
    for label in sorted(found):
        if 0 <= label < len(palette) and label != hidden:
            square = np.full((LEGEND, LEGEND, 3), palette[label], np.uint8)
            entries.append((names[label], square))
    if any(label >= len(palette) for label in found):
        grey = np.full((LEGEND, LEGEND, 3), 190, np.uint8)
        entries.append(("ignored", _striped(grey, np.ones((LEGEND, LEGEND), bool))))
    font = ImageFont.load_default(LEGEND)
    places, x, y = [], GAP, 0
    for name, _ in entries:
        width = LEGEND + 6 + math.ceil(font.getlength(name)) + 18
        if x > GAP and x + width > WIDTH:
            x, y = GAP, y + LEGEND + 10
        places.append((x, y))
        x += width
    legend = Image.new("RGB", (WIDTH, y + LEGEND + 12 if entries else 1), PAPER)
    draw = ImageDraw.Draw(legend)
    for (left, top), (name, square) in zip(places, entries, strict=True):
        legend.paste(Image.fromarray(square), (left, top))
        draw.rectangle((left - 1, top - 1, left + LEGEND, top + LEGEND), outline=QUIET)
        middle = (left + LEGEND + 6, top + LEGEND // 2)
        draw.text(middle, name, fill=INK, font=font, anchor="lm")
    return legend


def _striped(picture: Picture, where: NDArray[np.bool_]) -> Picture:
    """A picture with thin stripes, dark beside light, at some of its pixels."""
    rows, columns = np.indices(where.shape)
    place = (rows + columns) % STRIPES
    dark, light = where & (place < 2), where & (place == 2)
    striped = np.where(dark[..., None], picture // 3, picture)
    return np.where(light[..., None], picture // 2 + 100, striped).astype(np.uint8)


def _at_size(label: LabelMap, size: tuple[int, int]) -> LabelMap:
    """A label map at (width, height); the nearest id."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.intp)
        for new, old in zip(size[::-1], label.shape, strict=True)
    )
    return label[rows[:, None], columns]
