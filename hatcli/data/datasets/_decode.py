"""From what a record holds to what a sample holds."""

from collections.abc import Mapping
from typing import Any

from hatcli.data.packs.strips import RawRows, Strips
from hatcli.data.stored_image import StoredImage, decode_image


def stored_image(record: Mapping[str, Any]) -> Any:
    """The image of a record: (H, W, 3) uint8 RGB on memory of its own, or not decoded yet.

    Args:
        record: "image" holds an encoded file or pixels, "height" and "width" its size, "name" is
            what messages call it.

    Returns:
        `StoredImage` for a record that was read as views, else pixels.

    Raises:
        DataError: the bytes can't be decoded.
    """
    image, name = record["image"], record["name"]
    if isinstance(image, memoryview | Strips | RawRows):
        return StoredImage(image, name, (record["height"], record["width"]))
    return decode_image(image, name) if isinstance(image, bytes) else image


def with_maps(record: Mapping[str, Any], *, instances: bool) -> dict[str, Any]:
    """A sample of segmentation: its image, its label map, and on request that of the objects."""
    names = ("label", "instance") if instances else ("label",)
    maps = {name: record[name] for name in names}
    return {"image": stored_image(record), **maps, "name": record["name"]}
