"""Best and worst pictures on a page, each as a small file within it."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from hatcli.report.page import Markup, element
from hatcli.report.pictures import LabelMap, Palette, Picture

SIDE = 448  # pixels of the longer side
QUALITY = 82


@dataclass(frozen=True)
class Shown:
    """A picture and what a model made of it.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        name: of the sample.
        lines: what is to be said of it.
        label: (H, W) class at each pixel, where that is what is predicted.
        prediction: the same.
    """

    image: Picture
    name: str
    lines: Sequence[str]
    label: LabelMap | None = None
    prediction: LabelMap | None = None


def shrunk(image: Picture, side: int = SIDE) -> Picture:
    """An image whose longer side is at most so many pixels."""
    size = _size(image.shape[:2], side)
    if size == (image.shape[1], image.shape[0]):
        return image
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def shrunk_map(label: LabelMap, side: int = SIDE) -> LabelMap:
    """A uint8 label map whose longer side is at most so many pixels; the nearest class."""
    size = _size(label.shape, side)
    return np.asarray(Image.fromarray(label).resize(size, Image.Resampling.NEAREST))


def gallery(pictures: Sequence[Shown], palette: Palette) -> Markup:
    """Pictures in a grid; those with label maps one below the other, the maps beside them.

    Args:
        palette: RGB, 0 to 255, of the classes of the maps; what is no class is black.
    """
    if all(picture.label is None for picture in pictures):
        return element("div", *map(_single, pictures), class_="gallery")
    return Markup.joined(_triple(picture, palette) for picture in pictures)


def legend(names: Sequence[str], palette: Palette, shown: Sequence[int]) -> Markup:
    """The colours of some classes, by name."""
    items = [
        element(
            "li",
            element("span", "", class_="swatch", style=f"background: rgb{tuple(palette[index])}"),
            names[index],
        )
        for index in shown
    ]
    return element("ul", *items, class_="keys")


def _single(picture: Shown) -> Markup:
    return element(
        "figure",
        _image(_jpeg(picture.image), picture.image.shape, f"sample {picture.name}"),
        element("figcaption", *_caption(picture)),
    )


def _triple(picture: Shown, palette: Palette) -> Markup:
    panels = [("image", _jpeg(picture.image))]
    for what, label in (("prediction", picture.prediction), ("label", picture.label)):
        if label is not None:
            panels.append((what, _png(label, palette)))
    figures = [
        element(
            "figure",
            _image(data, picture.image.shape, f"{what} of sample {picture.name}"),
            element("figcaption", what),
        )
        for what, data in panels
    ]
    head = element("p", *_caption(picture))
    return element("article", head, element("div", *figures, class_="triple"))


def _caption(picture: Shown) -> list[str]:
    parts: list[str] = []
    for line in picture.lines:
        parts += [line, Markup("<br>")]
    return [*parts, element("span", picture.name, class_="quiet")]


def _image(data: str, shape: Sequence[int], alt: str) -> Markup:
    # An element without an end tag, which `element` doesn't write.
    whole = element("img", src=data, alt=alt, width=shape[1], height=shape[0])
    return Markup(whole.removesuffix("</img>"))


def _jpeg(image: Picture) -> str:
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="jpeg", quality=QUALITY, optimize=True)
    return _data("jpeg", file)


def _png(label: LabelMap, palette: Palette) -> str:
    """A label map as a picture of few colours, which is small."""
    black = len(palette)
    indices = np.where((label >= 0) & (label < black), label, black).astype(np.uint8)
    picture = Image.frombytes("P", (indices.shape[1], indices.shape[0]), indices.tobytes())
    picture.putpalette([level for color in (*palette, (0, 0, 0)) for level in color])
    file = io.BytesIO()
    picture.save(file, format="png", optimize=True)
    return _data("png", file)


def _data(kind: str, file: io.BytesIO) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def _size(shape: Sequence[int], side: int) -> tuple[int, int]:
    """(width, height), of which the larger is at most ``side``."""
    height, width = shape[0], shape[1]
    scale = min(1.0, side / max(height, width))
    return max(1, round(width * scale)), max(1, round(height * scale))
