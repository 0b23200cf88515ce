"""CPU time to read training batches from a pack, against other ways and other formats.

All decode the same photos, take a random part at 224x224, flip, and end with normalised float32
batches of 32, in one thread of one process, in turn. What a script with torchvision does with files
takes 1. Targets: ours first of all, and at most 0.80.

    python benchmarks/reading.py [FOLDER or TAR with JPEG files]

Without an argument it takes $HAT_TEST_DATA/coco.tar where that is set, else it draws 150 photos.
WebDataset, MosaicML streaming and LitData take part where they are installed.
"""

import argparse
import gc
import io
import os
import resource
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from hatcli.data import jpeg
from hatcli.data.datasets.imagenet import ImageNet
from hatcli.data.loader import Loader
from hatcli.data.transforms.batch import Normalize, RgbToYuv444
from hatcli.data.transforms.flip import RandomFlip
from hatcli.data.transforms.resized_crop import RandomResizedCrop
from hatcli.recipes.packing.pack import pack

simplejpeg = jpeg.simplejpeg

COUNT, BATCH, SIZE, ROUNDS = 150, 32, 224, 9
Workers = Literal["process", "thread"]
WORKERS: dict[str, tuple[int, Workers]] = {
    "no workers": (0, "process"),
    "2 processes": (2, "process"),
    "2 threads": (2, "thread"),
}
BASE, OURS = "files, Pillow, torchvision", "pack, simplejpeg"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Batches = Callable[[int], Iterator[Tensor]]


def photos(place: Path | None) -> Iterator[bytes]:
    """JPEG files from a folder or a tar archive, or drawn ones."""
    if place is None:
        yield from drawn_photos()
    elif place.is_dir():
        for path in sorted(place.rglob("*.[jJ][pP]*[gG]"))[:COUNT]:
            yield path.read_bytes()
    else:
        with tarfile.open(place) as archive:
            names = [name for name in archive.getnames() if name.lower().endswith(".jpg")]
            for name in sorted(names)[:COUNT]:
                file = archive.extractfile(name)
                assert file is not None
                yield file.read()


def drawn_photos() -> Iterator[bytes]:
    """About 500x375, with as many details that about 100 kB are needed, as photos do."""
    rng = np.random.default_rng(0)
    for _ in range(COUNT):
        width, height = rng.integers(400, 600), rng.integers(300, 450)
        pixels = np.zeros((height, width, 3))
        for cell in (4, 16, 64):
            coarse = rng.integers(0, 255, (height // cell + 2, width // cell + 2, 3), np.uint8)
            smooth = Image.fromarray(coarse).resize((int(width), int(height)))
            pixels += np.asarray(smooth, dtype=float) / 3
        file = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG", quality=96)
        yield file.getvalue()


def write_files(place: Path | None, root: Path) -> int:
    folder = root / "train" / "n00000001"
    folder.mkdir(parents=True)
    sizes = []
    for index, data in enumerate(photos(place)):
        (folder / f"n00000001_{index}.JPEG").write_bytes(data)
        sizes.append(len(data))
    if not sizes:
        sys.exit(f"no JPEG files in {place}")
    print(f"{len(sizes)} photos, {statistics.mean(sizes) / 1000:.0f} kB on average")
    return len(sizes)


def torchvision_way() -> Callable[[Image.Image], Tensor]:
    """The transforms of most training scripts."""
    from torchvision import transforms

    return transforms.Compose(
        [
            transforms.RandomResizedCrop(SIZE),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )


def from_files(root: Path) -> Batches:
    """What most training scripts do."""
    from torchvision import datasets

    dataset = datasets.ImageFolder(str(root / "train"), torchvision_way())
    loader = torch.utils.data.DataLoader(dataset, BATCH, shuffle=True)
    return lambda number: (images for images, _ in loader)


def from_pack(
    root: Path, to_input: nn.Module, *, jpeg_library: Any = simplejpeg, scaled: bool = False
) -> Batches:
    """Ours: JPEG files as they are, in a pack."""
    dataset = ImageNet("train_lmdb", root)
    crop = RandomResizedCrop(SIZE, scaled_decode=scaled)
    loader = Loader(dataset, [crop, RandomFlip()], batch_size=BATCH, shuffle=True)

    def batches(number: int) -> Iterator[Tensor]:
        jpeg.simplejpeg = jpeg_library
        return (to_input(batch.images) for batch in loader.epoch(number))

    return batches


def from_webdataset(root: Path) -> Batches:
    webdataset: Any = import_module("webdataset")
    transform, place = torchvision_way(), root / "web.tar"
    with webdataset.TarWriter(str(place)) as writer:
        for index, data in enumerate(read_files(root)):
            writer.write({"__key__": f"{index:06}", "jpg": data, "cls": 0})
    dataset = webdataset.WebDataset(str(place), shardshuffle=False, empty_check=False).shuffle(100)
    dataset = dataset.to_tuple("jpg", "cls").map_tuple(lambda data: transform(decoded(data)), int)
    loader: Any = torch.utils.data.DataLoader(dataset, BATCH)
    return lambda number: (images for images, _ in loader)


def from_streaming(root: Path) -> Batches:
    streaming: Any = import_module("streaming")
    transform, place = torchvision_way(), str(root / "streaming")
    with streaming.MDSWriter(out=place, columns={"jpg": "bytes", "label": "int"}) as writer:
        for data in read_files(root):
            writer.write({"jpg": data, "label": 0})

    class Photos(streaming.StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            sample = super().__getitem__(index)
            return transform(decoded(sample["jpg"])), sample["label"]

    photos = Photos(local=place, shuffle=True, batch_size=BATCH)
    loader: Any = torch.utils.data.DataLoader(photos, BATCH)
    return lambda number: (images for images, _ in loader)


def from_litdata(root: Path) -> Batches:
    litdata: Any = import_module("litdata")
    writer: Any = import_module("litdata.streaming.writer")
    transform, place = torchvision_way(), str(root / "litdata")
    chunks = writer.BinaryWriter(place, chunk_bytes="64MB")
    for index, data in enumerate(read_files(root)):
        chunks.add_item(index, {"jpg": data, "label": 0})
    chunks.done()
    chunks.merge()

    class Photos(litdata.StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: Any) -> tuple[Tensor, int]:
            sample = super().__getitem__(index)
            return transform(decoded(sample["jpg"])), sample["label"]

    loader = litdata.StreamingDataLoader(Photos(place, shuffle=True), batch_size=BATCH)
    return lambda number: (images for images, _ in loader)


def read_files(root: Path) -> Iterator[bytes]:
    return (path.read_bytes() for path in sorted((root / "train").rglob("*.JPEG")))


def decoded(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def all_ways(root: Path) -> dict[str, Batches]:
    """What takes part, the base first."""
    for _ in pack("imagenet", root, None, "train", num_workers=0):
        pass
    normalize = Normalize([255 * part for part in MEAN], [255 * part for part in STD])
    ways = {BASE: from_files(root)}
    peers = {
        "webdataset": from_webdataset,
        "streaming": from_streaming,
        "litdata": from_litdata,
    }
    for name, make in peers.items():
        if find_spec(name) is None:
            print(f"{name} isn't installed and takes no part")
        else:
            ways[f"{name}, Pillow, torchvision"] = make(root)
    if simplejpeg is None:
        print("simplejpeg isn't installed: all JPEG files are decoded by Pillow")
    else:
        ways[OURS] = from_pack(root, normalize)
        ways["pack, simplejpeg, YUV as in the configs"] = from_pack(root, RgbToYuv444())
        ways["pack, simplejpeg, scaled_decode"] = from_pack(root, normalize, scaled=True)
    ways["pack, Pillow"] = from_pack(root, normalize, jpeg_library=None)
    ways["pack, Pillow, scaled_decode"] = from_pack(root, normalize, jpeg_library=None, scaled=True)
    return ways


def cpu_ms_an_image(batches: Batches, number: int) -> float:
    count = 0
    started = time.process_time()
    for images in batches(number):
        count += len(images)
        assert images.dtype == torch.float32
    return 1000 * (time.process_time() - started) / count


def loader_cpu_ms(dataset: ImageNet, num_workers: int, workers: Workers) -> float:
    """CPU time an image of a loader alone, with the start and the end of its workers."""
    started = cpu_s()
    loader = Loader(
        dataset,
        [RandomResizedCrop(SIZE), RandomFlip()],
        batch_size=BATCH,
        shuffle=True,
        num_workers=num_workers,
        workers=workers,
    )
    count = sum(len(batch.names) for number in range(4) for batch in loader.epoch(number))
    del loader
    gc.collect()
    return 1000 * (cpu_s() - started) / count


def cpu_s() -> float:
    """Of this process and of all its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def compare_workers(root: Path) -> None:
    dataset = ImageNet("train_lmdb", root)
    times: dict[str, list[float]] = {name: [] for name in WORKERS}
    for number in range(ROUNDS):
        for name in list(WORKERS)[:: 1 if number % 2 else -1]:
            times[name].append(loader_cpu_ms(dataset, *WORKERS[name]))
    print("4 epochs of the loader alone, with the start of its workers:")
    for name, column in times.items():
        print(f"{name:45} {statistics.median(column):5.2f} ms CPU an image")


def anonymous_mb() -> float:
    """Memory of this process that is no file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith("RssAnon"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("place", type=Path, nargs="?", help="folder or tar archive of JPEG files")
    place = parser.parse_args().place
    if place is None and "HAT_TEST_DATA" in os.environ:
        place = Path(os.environ["HAT_TEST_DATA"], "coco.tar")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        write_files(place, Path(folder))
        ways = all_ways(Path(folder))
        for batches in ways.values():
            cpu_ms_an_image(batches, 0)  # warms caches and allocators
        memory = anonymous_mb()
        times: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(1, ROUNDS + 1):
            for name in list(ways)[:: 1 if number % 2 else -1]:
                times[name].append(cpu_ms_an_image(ways[name], number))
        grown = anonymous_mb() - memory
        jpeg.simplejpeg = simplejpeg
        compare_workers(Path(folder))
    for name, column in times.items():
        ratios = [ours / base for ours, base in zip(column, times[BASE], strict=True)]
        print(f"{name:45} {statistics.median(column):5.2f} ms an image, "
              f"ratio {statistics.median(ratios):.2f}")  # fmt: skip
    print(f"memory grew by {grown:.1f} MB over {ROUNDS} rounds")


if __name__ == "__main__":
    main()
