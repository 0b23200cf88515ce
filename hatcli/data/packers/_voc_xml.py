"""The boxes in an annotation file of PASCAL VOC."""

import re
from typing import NamedTuple
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

import numpy as np
from numpy.typing import NDArray

from hatcli.data.classes import VOC_CLASSES
from hatcli.disk import size_text
from hatcli.errors import DataError

MAX_XML_BYTES = 4 * 2**20

_MAX_DEPTH = 32
_NUMBER = re.compile(r"[+-]?[0-9]{1,9}(\.[0-9]{1,40})?")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


class Objects(NamedTuple):
    """What an annotation file says.

    Attributes:
        size: width and height of the image, in pixels.
        boxes: (N, 4) float32: left, top, right, bottom edges in pixels from the upper left corner.
        classes: (N,) int32, index among `VOC_CLASSES`.
        difficult: (N,) uint8, 1 for objects that scores leave out.
        truncated: (N,) uint8, 1 for objects of which a part isn't in the image.
        poses: N texts, such as "Left"; "Unspecified" where the file says nothing.
        clipped: boxes that were cut off at the border of the image.
    """

    size: tuple[int, int]
    boxes: NDArray[np.float32]
    classes: NDArray[np.int32]
    difficult: NDArray[np.uint8]
    truncated: NDArray[np.uint8]
    poses: list[str]
    clipped: int


def read_objects(data: bytes, where: str, *, clip: bool) -> Objects:
    """The objects of one image, in the file's order.

    VOC counts pixels from 1 and includes the last one: a box of the whole image is (1, 1, width,
    height). Here a box is given by its edges: 1 is taken from xmin and ymin, xmax and ymax stay,
    so that box is (0, 0, width, height), and its area the number of its pixels.

    Args:
        data: the whole XML file.
        where: what messages call it.
        clip: whether a box that reaches over the image's border is cut off there; otherwise it is
            an error.

    Raises:
        DataError: the file is damaged or says something impossible; names the element.
    """
    root = _parse(data, where)
    if root.tag != "annotation":
        raise DataError(f"{where}: the outermost element is <{root.tag[:40]}>, not <annotation>")
    size = _Reader(f"{where}: size", _only(root, "size", where))
    width, height = size.positive("width"), size.positive("height")
    boxes, classes, difficult, truncated, poses = [], [], [], [], []
    clipped = 0
    for number, element in enumerate(root.findall("object"), start=1):
        one = _Reader(f"{where}: object[{number}]", element)
        box = one.box((width, height))
        inside = (max(box[0], 0.0), max(box[1], 0.0), min(box[2], width), min(box[3], height))
        if inside != box:
            clipped += 1
            one.check_outside(box, inside, (width, height), clip=clip)
        classes.append(one.class_index())
        boxes.append(inside)
        difficult.append(one.flag("difficult"))
        truncated.append(one.flag("truncated"))
        poses.append(one.text("pose", "Unspecified"))
    return Objects(
        (width, height),
        np.array(boxes, dtype=np.float32).reshape(-1, 4),
        np.array(classes, dtype=np.int32),
        np.array(difficult, dtype=np.uint8),
        np.array(truncated, dtype=np.uint8),
        poses,
        clipped,
    )


class _Reader:
    """The values in an element; messages name it."""

    def __init__(self, where: str, element: Element) -> None:
        self._where, self._element = where, element

    def text(self, name: str, default: str | None = None) -> str:
        """What stands in a child."""
        if default is not None and self._element.find(name) is None:
            return default
        return (_only(self._element, name, self._where).text or "").strip()

    def positive(self, name: str) -> int:
        text = self.text(name)
        if not (text.isascii() and text.isdecimal() and 0 < len(text) <= 9 and int(text) > 0):
            raise DataError(f"{self._where}/{name} is {text[:40]!r}, not a number of pixels")
        return int(text)

    def flag(self, name: str) -> int:
        """0 or 1; 0 where there is no such child, as with some objects of VOC2012."""
        text = self.text(name, "0")
        if text not in ("0", "1"):
            raise DataError(f"{self._where}/{name} is {text[:40]!r}, not 0 or 1")
        return int(text)

    def class_index(self) -> int:
        name = self.text("name")
        if name not in VOC_CLASSES:
            raise DataError(f"{self._where}/name is {name[:40]!r}, which is no class of VOC")
        return VOC_CLASSES.index(name)

    def box(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """Left, top, right and bottom edges."""
        where = f"{self._where}/bndbox"
        corners = _Reader(where, _only(self._element, "bndbox", self._where))
        texts = [corners.text(name) for name in _CORNERS]
        for name, text in zip(_CORNERS, texts, strict=True):
            if not _NUMBER.fullmatch(text):
                raise DataError(f"{where}/{name} is {text[:40]!r}, not a number")
        left, top, right, bottom = map(float, texts)
        for low, high, name in ((left, right, "x"), (top, bottom, "y")):
            if low > high:
                raise DataError(f"{where}: {name}min {low:g} is above {name}max {high:g}")
        if left > size[0] or top > size[1] or right < 1 or bottom < 1:
            raise self._outside((left, top, right, bottom), size)
        return left - 1, top - 1, right, bottom

    def check_outside(
        self,
        box: tuple[float, float, float, float],
        inside: tuple[float, float, float, float],
        size: tuple[int, int],
        *,
        clip: bool,
    ) -> None:
        """Refuse a box that reaches over the border, unless it is to be cut off."""
        if not clip or inside[0] >= inside[2] or inside[1] >= inside[3]:
            raise self._outside((box[0] + 1, box[1] + 1, box[2], box[3]), size)

    def _outside(
        self, corners: tuple[float, float, float, float], size: tuple[int, int]
    ) -> DataError:
        numbers = ", ".join(f"{number:g}" for number in corners)
        return DataError(
            f"{self._where}/bndbox: box ({numbers}) is outside the image, 1 to {size[0]} "
            f"and 1 to {size[1]}",
            "--boxes clip cuts off what reaches over the border",
        )


def _only(element: Element, name: str, where: str) -> Element:
    """The one child of that name."""
    children = element.findall(name)
    if len(children) != 1:
        what = "no" if not children else f"{len(children)}"
        raise DataError(f"{where}: {what} <{name}> in <{element.tag}>")
    return children[0]


def _parse(data: bytes, where: str) -> Element:
    """The outermost element. No document type: entities are of no use here, only a danger."""
    if len(data) > MAX_XML_BYTES:
        raise DataError(f"{where}: {size_text(len(data))}; limit {size_text(MAX_XML_BYTES)}")
    builder = TreeBuilder()
    parser = expat.ParserCreate()
    depth = 0

    def refuse(*_: object) -> None:
        raise DataError(f"{where}: refused, it has a DOCTYPE")

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _MAX_DEPTH:
            raise DataError(f"{where}: elements are nested deeper than {_MAX_DEPTH} levels")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, ValueError, LookupError) as error:
        raise DataError(f"{where}: not XML ({error})") from error
    return builder.close()
