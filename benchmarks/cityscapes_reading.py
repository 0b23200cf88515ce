"""CPU time to read pairs of Cityscapes' size for training, and what they take on the disk.

Both sides scale each pair by 0.5 to 2, cut a window of 512x1024, flip, and end with normalised
float32 batches of 4: the same windows, in one thread of one process, in turn. What a script with
torchvision does with PNG files takes 1. Targets: at most 0.20 with strips; label maps at most 0.7
of the bytes of their PNG and 0.10 of its time.

    python benchmarks/cityscapes_reading.py [COCO.tar]

Pairs are COCO photos with the masks of their objects, tiled 4 x 3 and cut to 2048x1024; the
archive is $HAT_TEST_DATA/coco.tar unless given, and without either, street scenes are drawn.
"""

import argparse
import io
import json
import os
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from hatcli.data.classes import CITYSCAPES
from hatcli.data.datasets.cityscapes import Cityscapes
from hatcli.data.loader import Loader, sample_generator
from hatcli.data.packs.codec import decode, encode
from hatcli.data.scenes.draw import draw_scene
from hatcli.data.transforms.batch import Normalize
from hatcli.data.transforms.crop import RandomCrop
from hatcli.data.transforms.flip import RandomFlip
from hatcli.data.transforms.scale import RandomScale
from hatcli.data.transforms.scale_crop_flip import RandomScaleCropFlip
from hatcli.recipes.packing.pack import pack

COUNT, BATCH, ROUNDS = 8, 4, 7
WIDTH, HEIGHT, TILE = 2048, 1024, (640, 480)
CROP = 512, 1024
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IDS = [label.id for label in CITYSCAPES if label.train_id in range(19)]
TRAIN_IDS = np.full(256, 255, np.uint8)
TRAIN_IDS[IDS] = np.arange(19)
BASE = "PNG, Pillow, torchvision"

Pair = tuple[NDArray[np.uint8], NDArray[np.uint8]]  # image, label ids
Batches = Callable[[int], Iterator[Tensor]]


def pairs(place: Path | None) -> Iterator[Pair]:
    if place is None:
        for index in range(COUNT):
            yield draw_scene(np.random.default_rng(index), (WIDTH, HEIGHT))
        return
    with tarfile.open(place) as archive:
        tiles = [tile(pair) for pair in coco_pairs(archive, 12 * COUNT)]
    for start in range(0, len(tiles), 12):
        rows = [tiles[row : row + 4] for row in range(start, start + 12, 4)]
        image, label = (
            np.vstack([np.hstack([pair[part] for pair in row]) for row in rows])[:HEIGHT, :WIDTH]
            for part in (0, 1)
        )
        yield image, label


def coco_pairs(archive: tarfile.TarFile, count: int) -> Iterator[Pair]:
    """Photos with ids of classes where objects are, and 0 elsewhere."""
    names = {Path(name).name: name for name in archive.getnames()}

    def read(name: str) -> bytes:
        file = archive.extractfile(names[name])
        assert file is not None
        return file.read()

    parts = [json.loads(read(f"instances_{split}2017.json")) for split in ("train", "val")]
    objects: dict[int, list[Any]] = {}
    for annotation in (each for part in parts for each in part["annotations"]):
        objects.setdefault(annotation["image_id"], []).append(annotation)
    photos = [info for part in parts for info in part["images"] if info["file_name"] in names]
    for info in sorted(photos, key=lambda info: str(info["file_name"]))[:count]:
        image = Image.open(io.BytesIO(read(info["file_name"]))).convert("RGB")
        label = Image.new("L", image.size)
        for each in sorted(objects.get(info["id"], []), key=lambda each: -each["area"]):
            if isinstance(each["segmentation"], list):
                for polygon in each["segmentation"]:
                    fill = IDS[each["category_id"] % len(IDS)]
                    ImageDraw.Draw(label).polygon(polygon, fill=fill)
        yield np.asarray(image), np.asarray(label)


def tile(pair: Pair) -> Pair:
    """The upper left part of a pair, repeated where it is too small."""
    width, height = TILE
    rows, columns = (np.arange(side) for side in (height, width))
    image, label = (part.take(rows, 0, mode="wrap").take(columns, 1, mode="wrap") for part in pair)
    return image, label


def write_png_files(place: Path | None, root: Path) -> tuple[list[Path], list[Path]]:
    images, labels = [], []
    for index, (image, label) in enumerate(pairs(place)):
        name = f"made_{index:06}_000000"
        images.append(root / "leftImg8bit" / "train" / "made" / f"{name}_leftImg8bit.png")
        labels.append(root / "gtFine" / "train" / "made" / f"{name}_gtFine_labelIds.png")
        for path, pixels in ((images[-1], image), (labels[-1], label)):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path, "PNG", compress_level=6)
    return images, labels


def from_files(images: list[Path], labels: list[Path]) -> Batches:
    """What most training scripts do, with the draws of our transforms."""
    from torchvision.transforms import functional

    def read(index: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        factor = rng.uniform(0.5, 2.0)
        size = round(WIDTH * factor), round(HEIGHT * factor)
        top, left = (int(rng.integers(size[1 - axis] - CROP[axis] + 1)) for axis in (0, 1))
        window = (left, top, left + CROP[1], top + CROP[0])
        image = Image.open(images[index]).convert("RGB")
        image = image.resize(size, Image.Resampling.BILINEAR).crop(window)
        label = Image.open(labels[index]).resize(size, Image.Resampling.NEAREST).crop(window)
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            label = label.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        floats = functional.normalize(functional.to_tensor(image), list(MEAN), list(STD))
        return floats, torch.from_numpy(TRAIN_IDS[np.asarray(label)])

    def batches(number: int) -> Iterator[Tensor]:
        for start in range(0, COUNT, BATCH):
            indices = range(start, start + BATCH)
            read_pairs = [read(index, sample_generator(0, number, index)) for index in indices]
            made, _ = (torch.stack(column) for column in zip(*read_pairs, strict=True))
            yield made

    return batches


def from_pack(root: Path, name: str, transforms: list[Any] | None = None) -> Batches:
    dataset = Cityscapes("train_lmdb", root=root / name)
    loader = Loader(dataset, transforms or [RandomScaleCropFlip(*CROP)], batch_size=BATCH)
    to_input = Normalize([255 * part for part in MEAN], [255 * part for part in STD])
    return lambda number: (to_input(batch.images) for batch in loader.epoch(number))


def cpu_ms(work: Callable[[], object], count: int) -> float:
    started = time.process_time()
    work()
    return 1000 * (time.process_time() - started) / count


def read_all(batches: Batches, number: int) -> Tensor:
    return torch.cat(list(batches(number)))


def check_same(ways: dict[str, Batches]) -> None:
    """All show the same windows; only JPEG files may differ by more than a rounding."""
    expected = read_all(ways[BASE], 0)
    for name, batches in ways.items():
        difference = (read_all(batches, 0) - expected).abs()
        assert difference.mean() < (0.1 if "jpeg" in name else 0.001), name


def compare_labels(labels: list[Path], root: Path) -> None:
    """Print bytes and time of stored label maps against those of PNG files."""
    files = [path.read_bytes() for path in labels]
    maps = [np.asarray(Image.open(io.BytesIO(file))) for file in files]
    records = [encode({"label": label}, zstd=["label"]) for label in maps]

    def by_pillow() -> list[Any]:
        return [np.array(Image.open(io.BytesIO(file))) for file in files]

    def by_codec() -> list[Any]:
        return [decode(record) for record in records]

    times = [(cpu_ms(by_pillow, COUNT), cpu_ms(by_codec, COUNT)) for _ in range(3 * ROUNDS)]
    slower, ours = (statistics.median(column) for column in zip(*times, strict=True))
    ratio = statistics.median(ours / slower for slower, ours in times)
    size = sum(map(len, records)) / sum(map(len, files))
    print(f"label maps: {slower:.2f} ms as PNG, {ours:.2f} ms in packs: ratio {ratio:.2f} "
          f"(target: at most 0.10); {size:.2f} of the bytes (target: at most 0.7)")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("place", type=Path, nargs="?", help="tar archive of COCO")
    place = parser.parse_args().place
    if place is None and "HAT_TEST_DATA" in os.environ:
        place = Path(os.environ["HAT_TEST_DATA"], "coco.tar")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        images, labels = write_png_files(place, root)
        png_bytes = sum(path.stat().st_size for path in images)
        ways, sizes = {BASE: from_files(images, labels)}, {BASE: 1.0}
        for image_format in ("source", "raw", "strips", "jpeg:95"):
            name = f"pack, {image_format}"
            target = root / name
            for _ in pack(
                "cityscapes", root, target, "train", num_workers=0, image_format=image_format
            ):
                pass
            ways[name] = from_pack(root, name)
            pixels = (root / name / "train_lmdb" / "data.mdb").stat().st_size
            sizes[name] = pixels / png_bytes
        steps = [RandomScale(), RandomCrop(*CROP), RandomFlip()]
        ways["pack, strips, in three steps"] = from_pack(root, "pack, strips", steps)
        check_same(ways)
        times: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(1, ROUNDS + 1):
            for name in list(ways)[:: 1 if number % 2 else -1]:
                batches = ways[name]
                times[name].append(cpu_ms(lambda: read_all(batches, number), COUNT))  # noqa: B023
        compare_labels(labels, root)
    for name, column in times.items():
        ratios = [ours / base for ours, base in zip(column, times[BASE], strict=True)]
        size = f"{sizes[name]:.2f} of the bytes" if name in sizes else ""
        print(f"{name:30} {statistics.median(column):6.1f} ms a pair, "
              f"ratio {statistics.median(ratios):.3f}  {size}")  # fmt: skip


if __name__ == "__main__":
    main()
