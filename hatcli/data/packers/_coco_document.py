"""The annotation file of COCO, looked through once: who belongs to whom, and the text of each.

The file of the train split has 450 MB and would take some gigabytes as objects. So it is read
one annotation after the other; of each image its own text is kept, compressed, and read again
when that image is packed. The text is stored as it is: what is read back is what was there.
"""

import hashlib
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, NamedTuple
from zlib import crc32

import zstandard

from hatcli.data.packers._files import shown
from hatcli.data.packers._strict_json import check_finite, parse_at, short
from hatcli.data.packs.codec import encode
from hatcli.errors import DataError

MAX_JSON_BYTES = 2**31
HEAVY = ("images", "annotations")

_SPACE = " \t\n\r"
_INT64 = range(-(2**63), 2**63)
_ZSTD_LEVEL = 1  # the texts are kept only while packing


class ImageInfo(NamedTuple):
    """One entry of "images".

    Attributes:
        place: in that list.
    """

    place: int
    id: int
    file_name: str
    width: int
    height: int


@dataclass
class CocoDocument:
    """What an annotation file says; it can be pickled.

    Attributes:
        where: what messages call the file.
        images: in the file's order.
        categories: in the file's order, as they stand there.
        rest: the other entries of the file, such as "info" and "licenses".
        sha256: of the file.
    """

    where: str
    images: list[ImageInfo]
    categories: list[dict[str, Any]]
    rest: dict[str, Any]
    sha256: str
    _texts: list[bytes] = field(repr=False)
    _places: list["array[int]"] = field(repr=False)
    _checksums: list[int] = field(repr=False)

    def texts(self, index: int) -> tuple[bytes, bytes]:
        """The entry of an image, and its annotations as a JSON list.

        Each entry is as it stands in the file.
        """
        image, _, annotations = zstandard.decompress(self._texts[index]).partition(b"\0")
        return image, annotations

    def annotation_places(self, index: int) -> list[int]:
        """Where those annotations stand in the file's list, counted from 0."""
        return self._places[index].tolist()

    def count_annotations(self, index: int) -> int:
        """How many annotations an image has."""
        return len(self._places[index])

    def digest(self, index: int) -> str:
        """Differs when the text of an image or of its annotations does."""
        return f"{self._checksums[index]:08x}"

    def class_ids(self) -> list[int]:
        """The ids of the categories, in the order of the class indexes: sorted."""
        return sorted(category["id"] for category in self.categories)

    def keep(self, indexes: Sequence[int]) -> None:
        """Forget the other images."""
        self.images = [self.images[index] for index in indexes]
        self._texts = [self._texts[index] for index in indexes]
        self._places = [self._places[index] for index in indexes]
        self._checksums = [self._checksums[index] for index in indexes]


def read_coco(data: bytes, where: str) -> CocoDocument:
    """Look through an annotation file.

    Args:
        data: the whole file.
        where: what messages call it.

    Raises:
        DataError: it isn't JSON, or ids are missing, not unique or of nobody; the message gives
            the path in the file and the id. What single annotations say isn't looked at.
    """
    sha256 = hashlib.sha256(data).hexdigest()
    scan = _Scan(data, where)
    del data
    scan.run()
    images = _check_images(scan, where)
    categories = _check_categories(scan.rest.pop("categories", None), where)
    check_finite(scan.rest, "", where)
    try:
        encode({"categories": categories, **scan.rest})
    except DataError as error:
        raise DataError(f"{where}: {error.message}", error.hint) from error
    members = _annotations_of_images(scan, images, {row["id"] for row in categories}, where)
    texts, checksums = [], []
    compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL)
    for info, numbers in zip(images, members, strict=True):
        image_text = scan.slice("images", info.place)
        annotations = ", ".join(scan.slice("annotations", number) for number in numbers)
        text = f"{image_text}\0[{annotations}]".encode()
        texts.append(compressor.compress(text))
        checksums.append(crc32(text))
    rest = scan.rest
    return CocoDocument(where, images, categories, rest, sha256, texts, members, checksums)


class _Scan:
    """The file's text, and where in it the images and annotations stand.

    Attributes:
        rows: of "images" and "annotations": (start, end) of each in the text, as one flat array.
        found: "images": the entries; "annotations": (id, image id, category id), as a flat array.
        rest: the other entries.
    """

    def __init__(self, data: bytes, where: str) -> None:
        try:
            self._text = data.decode()
        except UnicodeDecodeError as error:
            raise DataError(f"{where}: not JSON (not UTF-8 at byte {error.start})") from error
        self._where = where
        self.rows = {name: array("q") for name in HEAVY}
        self.images: list[ImageInfo] = []
        self.ids = array("q")  # of annotations: id, image id, category id, and so on
        self.rest: dict[str, Any] = {}
        self._seen: set[str] = set()

    def run(self) -> None:
        """Read the whole text."""
        position = self._expect("{", self._skip(0))
        position = self._skip(position)
        if self._text[position : position + 1] == "}":
            position += 1
        else:
            position = self._members(position)
        if self._skip(position) != len(self._text):
            raise self._unreadable("more behind the end of the object", position)
        for name in HEAVY:
            if name not in self._seen:
                raise DataError(f"{self._where}: holds no {name!r}; is it an instances file?")

    def slice(self, name: str, number: int) -> str:
        """The text of an image or annotation."""
        rows = self.rows[name]
        return self._text[rows[2 * number] : rows[2 * number + 1]]

    def _members(self, position: int) -> int:
        while True:
            key, position = parse_at(self._text, position, f"{self._where}: a key")
            if not isinstance(key, str):
                raise self._unreadable("a key that is no text", position)
            if key in self._seen:
                raise DataError(f"{self._where}: holds the key {key[:80]!r} twice")
            self._seen.add(key)
            position = self._skip(self._expect(":", self._skip(position)))
            if key in HEAVY:
                position = self._list(key, position)
            else:
                where = f"{self._where}: {shown(key[:80])}"
                self.rest[key], position = parse_at(self._text, position, where)
            position = self._skip(position)
            if self._text[position : position + 1] == "}":
                return position + 1
            position = self._skip(self._expect(",", position))

    def _list(self, name: str, position: int) -> int:
        take: Callable[[Any, int], None] = {
            "images": self._take_image,
            "annotations": self._take_annotation,
        }[name]
        if self._text[position : position + 1] != "[":
            raise DataError(f"{self._where}: {name} is no list")
        position = self._skip(position + 1)
        if self._text[position : position + 1] == "]":
            return position + 1
        rows = self.rows[name]
        while True:
            number = len(rows) // 2
            value, end = parse_at(self._text, position, f"{self._where}: {name}[{number}]")
            rows.extend((position, end))
            if not isinstance(value, dict):
                raise DataError(f"{self._where}: {name}[{number}] is no object")
            take(value, number)
            position = self._skip(end)
            if self._text[position : position + 1] == "]":
                return position + 1
            position = self._skip(self._expect(",", position))

    def _take_image(self, value: Mapping[str, Any], number: int) -> None:
        path = f"images[{number}]"
        image_id = _integer(value, "id", path, self._where)
        path = f"{path} (id {image_id})"
        width, height = (_integer(value, key, path, self._where) for key in ("width", "height"))
        for key, side in (("width", width), ("height", height)):
            if side < 1:
                raise DataError(f"{self._where}: {path}.{key} is {side}")
        file_name = value.get("file_name")
        if not isinstance(file_name, str) or not _is_safe(file_name):
            raise DataError(f"{self._where}: {path}.file_name is {short(file_name)}")
        self.images.append(ImageInfo(number, image_id, file_name, width, height))

    def _take_annotation(self, value: Mapping[str, Any], number: int) -> None:
        path = f"annotations[{number}]"
        annotation_id = _integer(value, "id", path, self._where)
        path = f"{path} (id {annotation_id})"
        others = (_integer(value, key, path, self._where) for key in ("image_id", "category_id"))
        self.ids.extend((annotation_id, *others))

    def _skip(self, position: int) -> int:
        text = self._text
        while text[position : position + 1] in _SPACE and position < len(text):
            position += 1
        return position

    def _expect(self, sign: str, position: int) -> int:
        if self._text[position : position + 1] != sign:
            found = self._text[position : position + 8]
            raise self._unreadable(f"{sign!r} is missing before {found!r}", position)
        return position + 1

    def _unreadable(self, what: str, position: int) -> DataError:
        if not self._text:
            return DataError(f"{self._where}: not JSON (empty file)")
        return DataError(f"{self._where}: not JSON ({what}: char {position})")


def _integer(value: Mapping[str, Any], key: str, path: str, where: str) -> int:
    number = value.get(key)
    if type(number) is not int or number not in _INT64:
        what = f"is {short(number)}, not an integer" if key in value else "is missing"
        raise DataError(f"{where}: {path}.{key} {what}")
    return number


def _is_safe(file_name: str) -> bool:
    """Whether a name stays in its folder, on any system."""
    path = PurePosixPath(file_name)
    parts = file_name.split("/")
    return (
        bool(path.name)
        and not any(part in ("", ".", "..") for part in parts)
        and "\\" not in file_name
        and ":" not in file_name
        and "\0" not in file_name
    )


def _check_images(scan: _Scan, where: str) -> list[ImageInfo]:
    """The images; ids and file names are unique."""
    if not scan.images:
        raise DataError(f"{where}: holds no images")
    by_id: dict[int, ImageInfo] = {}
    by_name: dict[str, ImageInfo] = {}
    for info in scan.images:
        other = by_id.setdefault(info.id, info)
        if other is not info:
            places = f"images[{other.place}] and images[{info.place}]"
            raise DataError(f"{where}: {places} have one id, {info.id}")
        other = by_name.setdefault(info.file_name, info)
        if other is not info:
            places = f"images[{other.place}] and images[{info.place}]"
            raise DataError(
                f"{where}: duplicate sample name: {places} have one file_name, "
                f"{shown(info.file_name)}"
            )
    return scan.images


def _check_categories(categories: object, where: str) -> list[dict[str, Any]]:
    """The categories; ids and names are unique."""
    if not isinstance(categories, list) or not categories:
        raise DataError(f"{where}: holds no list of categories")
    ids: dict[int, int] = {}
    names: dict[str, int] = {}
    for place, category in enumerate(categories):
        path = f"categories[{place}]"
        if not isinstance(category, dict):
            raise DataError(f"{where}: {path} is no object")
        number = _integer(category, "id", path, where)
        name = category.get("name")
        if not isinstance(name, str) or not name:
            raise DataError(f"{where}: {path} (id {number}).name is {short(name)}")
        for other, what, value in (
            (ids.setdefault(number, place), "id", number),
            (names.setdefault(name, place), "name", name),
        ):
            if other != place:
                both = f"categories[{other}] and {path}"
                raise DataError(f"{where}: {both} have one {what}, {short(value)}")
    check_finite(categories, "categories", where)
    return categories


def _annotations_of_images(
    scan: _Scan, images: Sequence[ImageInfo], category_ids: set[int], where: str
) -> list["array[int]"]:
    """For each image the places of its annotations, in the file's order."""
    index_of = {info.id: index for index, info in enumerate(images)}
    members = [array("q") for _ in images]
    seen: set[int] = set()
    for place, (number, image_id, category_id) in enumerate(_triples(scan.ids)):
        path = f"annotations[{place}] (id {number})"
        if number in seen:
            raise DataError(f"{where}: {path}: another annotation has this id")
        seen.add(number)
        if image_id not in index_of:
            raise DataError(f"{where}: {path}.image_id is {image_id}, which no image has")
        if category_id not in category_ids:
            raise DataError(f"{where}: {path}.category_id is {category_id}, which no category has")
        members[index_of[image_id]].append(place)
    return members


def _triples(numbers: "array[int]") -> Iterator[tuple[int, int, int]]:
    return zip(numbers[0::3], numbers[1::3], numbers[2::3], strict=True)
