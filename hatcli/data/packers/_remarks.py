"""What several packers say of a source: that it isn't there, and how it differs from others."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

_MOST_NAMES = 8


def describe_missing(source_dir: Path, what: str) -> str:
    """Why nothing was found: there is no source, it is a file, or it holds other things.

    Args:
        source_dir: where it was looked for.
        what: wasn't found in it, e.g. "no gtFine/train/".
    """
    if not source_dir.exists():
        return f"source directory not found: {source_dir}"
    if not source_dir.is_dir():
        return f"{source_dir} is a file; give the directory that holds it"
    found = sorted(path.name for path in source_dir.iterdir())
    names = ", ".join([*found[:_MOST_NAMES], *(["..."] if len(found) > _MOST_NAMES else [])])
    return f"{what} under {source_dir}; found: {names or 'nothing'}"


def compare_number(images: int, split: str, official: int | None) -> list[str]:
    """A remark if the published split, where there is one, has another number of images."""
    if official in (None, images):
        return []
    return [f"{images} images; the published {split} split has {official}"]


def find_turned(
    meta: Mapping[str, Any], options: Mapping[str, Any], more: str = "; --apply-exif turns them"
) -> list[str]:
    """A remark if there are images that viewers would turn, and that are packed as they are."""
    turned = meta["counts"].get("exif_rotated")
    if not turned or options["apply_exif"]:
        return []
    return [f"{turned} images have an EXIF orientation, which is ignored{more}"]
