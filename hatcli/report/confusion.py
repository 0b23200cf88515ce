"""Which classes a model takes for which others: a picture, and a table by class."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from hatcli.report.pictures import Picture
from hatcli.report.sheet import shortened

Counts = NDArray[np.int64]

WITH_NUMBERS = 40
"""Up to so many classes each cell is large enough for its number, and each row for its name."""

LISTED = 46
"""At most so many confusions are named beside a matrix without names."""

_INK, _QUIET, _PAPER = (20, 24, 28), (90, 98, 106), (255, 255, 255)
_DARKEST = np.array([8, 48, 107])
_UNSEEN = (232, 234, 237)  # rows of classes that no label has
_MAP = 1000  # pixels of a matrix without names
_GAP, _TEXT, _TITLE = 12, 13, 16
_NAME = 190  # pixels for a name
_BESIDE = 480  # pixels for what stands beside a matrix without names


def draw_confusion(confusion: Counts, names: Sequence[str], title: str) -> Picture:
    """The matrix as a picture: rows are labels, columns predictions, each row sums to 100 %.

    Up to `WITH_NUMBERS` classes the cells hold their percentages. Of more classes each cell is a
    few pixels, or one, and the most frequent confusions stand beside it by name. The colour goes
    with the square root of the share, there with the fourth, so that 1 % can be seen.

    Args:
        confusion: (C, C) counts, or (C, C + 1) with a last column for predictions of no class.
        names: of the C classes.
        title: above it.

    Returns:
        (H, W, 3) uint8.
    """
    shares = row_shares(confusion)
    columns = [*names, "(none)"][: shares.shape[1]]
    if shares.shape[1] == len(names) + 1 and not confusion[:, -1].any():
        shares, columns = shares[:, :-1], columns[:-1]
    draw = _with_numbers if len(names) <= WITH_NUMBERS else _without_numbers
    body = draw(shares, confusion, names, columns)
    font = ImageFont.load_default(_TITLE)
    lines = [title, "rows: labels; columns: predictions; each row is 100 %"]
    sheet = Image.new("RGB", (body.width, body.height + len(lines) * (_TITLE + 6) + _GAP), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        place = (_GAP, _GAP + number * (_TITLE + 6))
        text = shortened(line, font, body.width - 2 * _GAP)
        pen.text(place, text, fill=_QUIET if number else _INK, font=font, anchor="lt")
    sheet.paste(body, (0, sheet.height - body.height))
    return np.asarray(sheet)


def class_table(confusion: Counts, names: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each class: how often it is labelled, and what becomes of it.

    Returns:
        "class"; "labelled" and "predicted", counts; "recall", "precision" and "IoU" in percent,
        None where they would be a mean of nothing; "taken_for", the other class that it is most
        often taken for, and "taken_for_share" in percent of its labels; both None if there is
        none.
    """
    shares = row_shares(confusion)
    hits, labelled = confusion.diagonal(), confusion.sum(1)
    predicted = confusion[:, : len(names)].sum(0)
    rows = []
    for index, name in enumerate(names):
        others = shares[index, : len(names)].copy()
        others[index] = 0
        worst = int(np.nan_to_num(others).argmax())
        is_taken = bool(labelled[index]) and others[worst] > 0
        hit, union = hits[index], labelled[index] + predicted[index] - hits[index]
        rows.append(
            {
                "class": name,
                "labelled": int(labelled[index]),
                "predicted": int(predicted[index]),
                "recall": _percent(hit, labelled[index]),
                "precision": _percent(hit, predicted[index]),
                "IoU": _percent(hit, union),
                "taken_for": names[worst] if is_taken else None,
                "taken_for_share": round(100 * float(others[worst]), 3) if is_taken else None,
            }
        )
    return rows


def worst_pairs(confusion: Counts, names: Sequence[str], most: int) -> list[dict[str, Any]]:
    """Which classes are taken for which others, the most frequent confusions first.

    A class of one or two images says little: the share of its labels counts, and, as a square
    root, how many these are.

    Args:
        names: of the columns.
        most: length of the list.

    Returns:
        "class", "taken_for", "share" in percent of the class's labels, and "count".
    """
    shares = np.nan_to_num(row_shares(confusion))
    np.fill_diagonal(shares, 0)
    order = np.argsort(-shares * np.sqrt(confusion), axis=None, kind="stable")[:most]
    places = [divmod(int(place), shares.shape[1]) for place in order]
    return [
        {
            "class": names[row],
            "taken_for": names[column],
            "share": 100 * float(shares[row, column]),
            "count": int(confusion[row, column]),
        }
        for row, column in places
        if shares[row, column] > 0
    ]


def row_shares(confusion: Counts) -> NDArray[np.float64]:
    """Each count as a share of its row's sum; NaN in rows without any."""
    sums = confusion.sum(1, keepdims=True).astype(np.float64)
    return np.divide(confusion, sums, out=np.full(confusion.shape, np.nan), where=sums > 0)


def _percent(part: int, whole: int) -> float | None:
    return round(100 * int(part) / int(whole), 3) if whole else None


def _colors(shares: NDArray[np.float64], power: float) -> Picture:
    """(R, C) shares as (R, C, 3): white for 0 to dark blue for 1, grey for NaN."""
    depth = np.nan_to_num(shares)[..., None] ** power
    colors = np.rint(255 + depth * (_DARKEST - 255)).astype(np.uint8)
    colors[np.isnan(shares)] = _UNSEEN
    return colors


def _with_numbers(
    shares: NDArray[np.float64], _counts: Counts, names: Sequence[str], columns: Sequence[str]
) -> Image.Image:
    cell = 44 if len(names) <= 24 else 34
    font = ImageFont.load_default(_TEXT)
    small = ImageFont.load_default(_TEXT if cell >= 44 else _TEXT - 2)
    side = _margin([*names, *columns], font)
    grid = np.kron(_colors(shares, 0.5), np.ones((cell, cell, 1), np.uint8))
    picture = Image.new("RGB", (side + grid.shape[1] + _GAP, side + grid.shape[0] + _GAP), _PAPER)
    picture.paste(Image.fromarray(grid), (side, side))
    pen = ImageDraw.Draw(picture)
    for row, name in enumerate(names):
        middle = side + row * cell + cell // 2
        pen.text((side - 6, middle), shortened(name, font, side - 12), _INK, font, "rm")
        for column in range(shares.shape[1]):
            share = shares[row, column]
            if not np.isnan(share) and share >= 0.0005:
                ink = _PAPER if share > 0.2 else _INK
                place = (side + column * cell + cell // 2, middle)
                pen.text(place, _number(100 * share), ink, small, "mm")
    for column, name in enumerate(columns):
        text = _upright(shortened(name, font, side - 12), font)
        left = side + column * cell + (cell - text.width) // 2
        picture.paste(text, (left, side - 6 - text.height))
    return picture


def _without_numbers(
    shares: NDArray[np.float64], counts: Counts, names: Sequence[str], columns: Sequence[str]
) -> Image.Image:
    cell = max(1, _MAP // len(names))
    grid = np.kron(_colors(shares, 0.25), np.ones((cell, cell, 1), np.uint8))
    font, side = ImageFont.load_default(_TEXT), 52
    height, width = grid.shape[:2]
    picture = Image.new("RGB", (side + width + _BESIDE + 3 * _GAP, side + height + _GAP), _PAPER)
    picture.paste(Image.fromarray(grid), (side, side))
    pen = ImageDraw.Draw(picture)
    pen.rectangle((side - 1, side - 1, side + width, side + height), outline=_QUIET)
    for index in range(0, len(names), _tick(len(names))):
        at = side + index * cell + cell // 2
        pen.line((side - 6, at, side - 2, at), _QUIET)
        pen.line((at, side - 6, at, side - 2), _QUIET)
        pen.text((side - 9, at), str(index), _QUIET, font, "rm")
        pen.text((at, side - 9), str(index), _QUIET, font, "mb")
    left = side + width + 2 * _GAP
    right = np.nan_to_num(shares[:, : len(names)].diagonal())
    mean = f"{len(names)} classes; in the mean {100 * np.mean(right):.1f} % of a class are right;"
    pen.text((left, side), mean, _INK, font, "lt")
    pen.text((left, side + 20), "the most frequent confusions:", _INK, font, "lt")
    for number, pair in enumerate(worst_pairs(counts, columns, min(LISTED, (height - 50) // 20))):
        text = f"{pair['share']:5.1f} %  {pair['class']}  as  {pair['taken_for']}"
        spot = (left, side + 46 + 20 * number)
        pen.text(spot, shortened(text, font, _BESIDE), _QUIET, font, "lt")
    return picture


def _tick(count: int) -> int:
    """A round number of classes, about a tenth of them."""
    size = 10 ** int(math.log10(max(count // 10, 1)))
    return next(size * step for step in (1, 2, 5, 10) if count <= 12 * size * step)


def _margin(names: Sequence[str], font: Any) -> int:
    longest = max(math.ceil(font.getlength(name)) for name in names)
    return min(longest, _NAME) + _GAP


def _number(percent: float) -> str:
    return f"{percent:.0f}" if percent >= 10 else f"{percent:.1f}"


def _upright(text: str, font: Any) -> Image.Image:
    """A text that is read from below."""
    flat = Image.new("RGB", (math.ceil(font.getlength(text)) + 2, _TEXT + 6), _PAPER)
    ImageDraw.Draw(flat).text((1, 3), text, _INK, font, "lt")
    return flat.rotate(90, expand=True)
