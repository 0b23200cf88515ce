"""A tiny made-up PASCAL VOC: the real folders and file names, pictures of a few rectangles.

Each object is a rectangle in the colour of its class, so that boxes, maps and pixels agree.
"""

import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from hatcli.data.classes import VOC_CLASSES, voc_color

KINDS = ("Annotations", "JPEGImages", "SegmentationClass", "SegmentationObject", "ImageSets")
PALETTE = [part for index in range(256) for part in voc_color(index)]

DETECTION = ["voc", "--year", "2007"]
SEGMENTATION = [*DETECTION, "--task", "segmentation"]
DOG = {"name": "dog", "box": (2, 3, 20, 30), "difficult": 0, "truncated": 1, "pose": "Left"}


def make_voc(
    root: Path,
    *,
    year: str = "2007",
    train: int = 4,
    val: int = 2,
    size: tuple[int, int] = (48, 32),
    seed: int = 0,
) -> Path:
    """Write VOCdevkit/VOC<year>/ under a folder and return that folder.

    Args:
        root: made when it is missing.
        year: of the devkit.
        train: pictures in the split.
        val: the same.
        size: (width, height) in pixels.
        seed: of everything drawn; equal seeds give equal files.
    """
    rng = np.random.default_rng(seed)
    names = [f"{number:06d}" for number in range(1, train + val + 1)]
    for name in names:
        write_picture(root, name, draw_objects(rng, size), size, rng, year=year)
    for split, part in (("train", names[:train]), ("val", names[train:]), ("trainval", names)):
        for folder in ("Main", "Segmentation"):
            write_list(root, split, part, folder=folder, year=year)
        marks = "".join(f"{name} {-1 if int(name) % 2 else ' 1'}\n" for name in part)
        (devkit(root, year) / "ImageSets" / "Main" / f"dog_{split}.txt").write_text(marks)
    return root


def devkit(root: Path, year: str = "2007") -> Path:
    """Where a year's folders are."""
    return root / "VOCdevkit" / f"VOC{year}"


def file_of(root: Path, kind: str, name: str = "000001", year: str = "2007") -> Path:
    """One file of a picture."""
    ending = {"Annotations": "xml", "JPEGImages": "jpg"}.get(kind, "png")
    return devkit(root, year) / kind / f"{name}.{ending}"


def write_list(
    root: Path, split: str, names: list[str], *, folder: str = "Main", year: str = "2007"
) -> None:
    """The list of a split."""
    path = devkit(root, year) / "ImageSets" / folder / f"{split}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in names))


def draw_objects(rng: np.random.Generator, size: tuple[int, int]) -> list[dict[str, object]]:
    """One to three objects that don't overlap: class name, xmin to ymax as in the files, flags."""
    width, height = size
    count = int(rng.integers(1, 4))
    objects = []
    for number in range(count):
        left = width * number // count
        xmin = left + int(rng.integers(1, 4))
        ymin = 1 + int(rng.integers(0, height // 3))
        objects.append(
            {
                "name": VOC_CLASSES[int(rng.integers(len(VOC_CLASSES)))],
                "box": (xmin, ymin, left + width // count - 1, height - int(rng.integers(0, 5))),
                "difficult": int(rng.integers(2)),
                "truncated": int(rng.integers(2)),
                "pose": ("Left", "Unspecified")[int(rng.integers(2))],
            }
        )
    return objects


def write_picture(root, name, objects, size, rng, *, year="2007"):
    """The image, its XML and its two maps."""
    width, height = size
    classes = np.zeros((height, width), np.uint8)
    numbers = np.zeros((height, width), np.uint8)
    for number, one in enumerate(objects, start=1):
        xmin, ymin, xmax, ymax = one["box"]
        classes[ymin - 1 : ymax, xmin - 1 : xmax] = VOC_CLASSES.index(one["name"]) + 1
        numbers[ymin - 1 : ymax, xmin - 1 : xmax] = number
    pixels = np.array([voc_color(index) for index in range(256)], np.int64)[classes]
    pixels = np.clip(pixels + rng.integers(-12, 13, pixels.shape), 0, 255).astype(np.uint8)
    numbers[0, 0] = classes[0, 0] = 255
    for kind, array in (
        ("JPEGImages", pixels),
        ("SegmentationClass", classes),
        ("SegmentationObject", numbers),
    ):
        image = Image.fromarray(array)
        if array.ndim == 2:
            image.putpalette(PALETTE)
        path = file_of(root, kind, name, year)
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, quality=90)
    path = file_of(root, "Annotations", name, year)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(xml_of(name, size, objects, year))


def xml_of(name, size, objects, year="2007"):
    """An annotation file as the devkit has it."""
    rows = "".join(
        f"<object><name>{one['name']}</name><pose>{one['pose']}</pose>"
        f"<truncated>{one['truncated']}</truncated><difficult>{one['difficult']}</difficult>"
        "<bndbox>"
        + "".join(
            f"<{corner}>{number}</{corner}>"
            for corner, number in zip(("xmin", "ymin", "xmax", "ymax"), one["box"], strict=True)
        )
        + "</bndbox></object>\n"
        for one in objects
    )
    return (
        f"<annotation><folder>VOC{year}</folder><filename>{name}.jpg</filename>\n"
        f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>\n"
        f"<segmented>1</segmented>\n{rows}</annotation>\n"
    )


def tar_voc(root: Path, path: Path, *, prefix: str = "") -> Path:
    """Put a made devkit into a tar archive, as the published ones are, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        archive.add(root / "VOCdevkit", f"{prefix}VOCdevkit")
    return path
