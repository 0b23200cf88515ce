"""A tiny made-up COCO: the real folders and file names, pictures of a few rectangles.

As in the real set, ids of categories have gaps, annotations of an image don't stand together,
some images have none, and a crowd is an RLE.
"""

import copy
import json
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

CATEGORIES = [
    {"supercategory": "animal", "id": 18, "name": "dog"},
    {"supercategory": "person", "id": 1, "name": "person"},
    {"supercategory": "indoor", "id": 90, "name": "toothbrush"},
]
COLORS = {18: (200, 40, 40), 1: (40, 200, 40), 90: (40, 40, 200)}
LICENSE = {"url": "http://example.org/", "id": 1, "name": "made up"}


def make_coco(
    root: Path,
    *,
    train: int = 5,
    val: int = 3,
    size: tuple[int, int] = (48, 32),
    seed: int = 0,
) -> Path:
    """Write train2017/, val2017/ and annotations/ under a folder and return that folder.

    Args:
        root: made when it is missing.
        train: pictures in the split; the second one has no annotation.
        val: the same.
        size: (width, height) in pixels.
        seed: of everything drawn; equal seeds give equal files.
    """
    rng = np.random.default_rng(seed)
    for split, count in (("train", train), ("val", val)):
        document = {
            "info": {"description": "made up", "year": 2017, "version": 1.5},
            "licenses": [LICENSE],
            "images": [],
            "annotations": [],
            "categories": copy.deepcopy(CATEGORIES),
        }
        for number in range(count):
            image_id = 1000 - 7 * number  # not sorted, as in the real files
            add_picture(root, document, f"{split}2017", image_id, size, rng, empty=number == 1)
        rng.shuffle(document["annotations"])
        write_document(root, document, split)
    return root


def json_file(root: Path, split: str = "train") -> Path:
    return root / "annotations" / f"instances_{split}2017.json"


def read_document(root: Path, split: str = "train") -> dict:
    return json.loads(json_file(root, split).read_text())


def write_document(root: Path, document: object, split: str = "train") -> None:
    path = json_file(root, split)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))


def add_picture(root, document, folder, image_id, size, rng, *, empty):
    """Draw one picture, and add it and its one to three objects and a crowd to a document."""
    width, height = size
    pixels = rng.integers(90, 110, (height, width, 3))
    count = 0 if empty else int(rng.integers(1, 4))
    for number in range(count):
        x = width * number // count + float(rng.integers(0, 40)) / 10
        y = float(rng.integers(0, 80)) / 10
        w, h = width // count - 5.25, height - 9
        category = CATEGORIES[int(rng.integers(3))]["id"]
        pixels[round(y) : round(y + h), round(x) : round(x + w)] = COLORS[category]
        add_annotation(
            document,
            image_id,
            category,
            [x, y, w, h],
            [[x, y, x + w, y, x + w, y + h, x, y + h]],
            area=w * h * 0.75,
        )
    if not empty and image_id % 2:
        runs = [10, 5, height * width - 15]
        crowd = {"counts": runs, "size": [height, width]}
        add_annotation(document, image_id, 1, [0, 10, 1, 5], crowd, area=5, crowd=1)
    file_name = f"{image_id:012d}.jpg"
    path = root / folder / file_name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path, quality=92)
    document["images"].append(
        {
            "license": 1,
            "file_name": file_name,
            "coco_url": f"http://example.org/{file_name}",
            "height": height,
            "width": width,
            "date_captured": "2013-11-14 11:18:45",
            "id": image_id,
        }
    )


def add_annotation(document, image_id, category, bbox, segmentation, *, area, crowd=0):
    document["annotations"].append(
        {
            "segmentation": segmentation,
            "area": area,
            "iscrowd": crowd,
            "image_id": image_id,
            "bbox": bbox,
            "category_id": category,
            "id": 100 + len(document["annotations"]) * 3,
        }
    )


def zip_coco(root: Path, target: Path) -> Path:
    """Write the three published archives from a made folder into ``target`` and return it."""
    target.mkdir(parents=True, exist_ok=True)
    for archive, folder in (
        ("train2017.zip", "train2017"),
        ("val2017.zip", "val2017"),
        ("annotations_trainval2017.zip", "annotations"),
    ):
        with zipfile.ZipFile(target / archive, "w", zipfile.ZIP_DEFLATED) as packed:
            for path in sorted((root / folder).glob("*")):
                packed.write(path, path.relative_to(root).as_posix())
    return target
