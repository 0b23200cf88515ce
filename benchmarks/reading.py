"""CPU time to read training batches from a pack, against files, Pillow and torchvision.

Both sides decode the same photos, take a random part at 224x224, flip, and end with the float32
batches of 32 that a network takes (normalised RGB there, YUV as in the shipped configs here), in
one thread of one process, in turn. Target: at most 1.0.

    python benchmarks/reading.py [FOLDER or TAR with JPEG files]

Without an argument it takes $HAT_TEST_DATA/coco.tar where that is set, else it draws 150 photos.
"""

import argparse
import io
import os
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hatcli.data.datasets.imagenet import ImageNet
from hatcli.data.loader import Loader
from hatcli.data.transforms.batch import RgbToYuv444
from hatcli.data.transforms.flip import RandomFlip
from hatcli.data.transforms.resized_crop import RandomResizedCrop
from hatcli.recipes.pack import pack

COUNT, BATCH, SIZE, ROUNDS = 150, 32, 224, 15
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


def from_files(root: Path) -> Batches:
    """What most training scripts do."""
    from torchvision import datasets, transforms

    dataset = datasets.ImageFolder(
        str(root / "train"),
        transforms.Compose(
            [
                transforms.RandomResizedCrop(SIZE),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        ),
    )
    loader = torch.utils.data.DataLoader(dataset, BATCH, shuffle=True)
    return lambda number: (images for images, _ in loader)


def from_pack(root: Path) -> Batches:
    for _ in pack("imagenet", root, None, "train", num_workers=0):
        pass
    dataset = ImageNet("train_lmdb", root)
    loader = Loader(
        dataset, [RandomResizedCrop(SIZE), RandomFlip()], batch_size=BATCH, shuffle=True
    )
    to_input = RgbToYuv444()
    return lambda number: (to_input(batch.images) for batch in loader.epoch(number))


def cpu_ms_an_image(batches: Batches, number: int) -> float:
    count = 0
    started = time.process_time()
    for images in batches(number):
        count += len(images)
        assert images.dtype == torch.float32
    return 1000 * (time.process_time() - started) / count


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
        files, packed = from_files(Path(folder)), from_pack(Path(folder))
        cpu_ms_an_image(files, 0), cpu_ms_an_image(packed, 0)  # warms caches and allocators
        memory = anonymous_mb()
        times: list[tuple[float, float]] = []
        for number in range(1, ROUNDS + 1):
            if number % 2:
                base = cpu_ms_an_image(files, number)
                times.append((base, cpu_ms_an_image(packed, number)))
            else:
                ours = cpu_ms_an_image(packed, number)
                times.append((cpu_ms_an_image(files, number), ours))
        grown = anonymous_mb() - memory
    base, ours = (statistics.median(column) for column in zip(*times, strict=True))
    ratio = statistics.median(ours / base for base, ours in times)
    print(f"files, Pillow, torchvision {base:5.2f} ms an image; pack {ours:5.2f} ms: "
          f"ratio {ratio:.2f} (target: at most 1.0)")  # fmt: skip
    print(f"memory grew by {grown:.1f} MB over {ROUNDS} rounds")


if __name__ == "__main__":
    main()
