"""A tiny made-up ILSVRC2012: the three published archives, or folders; photos of a few blocks.

As in the real set, the ILSVRC2012_ID of a class isn't its index, and meta.mat lists classes that
have others below them. Each class has a colour, so that even a tiny model can learn it.
"""

import gzip
import io
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from hatcli.events import finish
from hatcli.recipes.packing.pack import PackResult, pack

TRAIN_TAR = "ILSVRC2012_img_train.tar"
VAL_TAR = "ILSVRC2012_img_val.tar"
DEVKIT_TAR = "ILSVRC2012_devkit_t12.tar.gz"
DEVKIT = DEVKIT_TAR.removesuffix(".tar.gz")
META = f"{DEVKIT}/data/meta.mat"
TRUTH = f"{DEVKIT}/data/ILSVRC2012_validation_ground_truth.txt"

# ILSVRC2012_ID, WordNet id, words, children; sorted by the id of ILSVRC, as in the real file.
SYNSETS = [
    (1, "n02119789", "kit fox, Vulpes macrotis", []),
    (2, "n01440764", "tench, Tinca tinca", []),
    (3, "n03126707", "crane", []),
    (4, "n02012849", "crane", []),
    (5, "n00001740", "entity", [6, 3]),
    (6, "n00015388", "animal, animate being, beast", [1, 2, 4]),
]
WNIDS = sorted(wnid for _, wnid, _, children in SYNSETS if not children)
NAMES = ("tench", "crane n02012849", "kit fox", "crane n03126707")
COLORS = {"n01440764": 0, "n02012849": 1, "n02119789": 2, "n03126707": 3}
ID_OF = {wnid: number for number, wnid, _, _ in SYNSETS}


def make_imagenet(
    root: Path, *, train: int = 2, val: int = 2, num_classes: int = 4, seed: int = 0
) -> Path:
    """Write the three archives into a folder and return that folder.

    Args:
        root: made when it is missing.
        train: photos of each of four classes.
        val: the same; the numbers of the photos don't follow the classes.
        num_classes: classes in the development kit; those after the four have no photos.
        seed: of everything drawn; equal seeds give equal files.
    """
    more = [(10 + n, f"n9{n:07d}", f"thing {n}", []) for n in range(num_classes - 4)]
    root.mkdir(parents=True, exist_ok=True)
    write_tar(root / TRAIN_TAR, [(f"{w}.tar", tar_of(f)) for w, f in train_files(train, seed)])
    shown = val_wnids(val)
    write_tar(root / VAL_TAR, val_files(shown, seed))
    write_devkit(root, [ID_OF[wnid] for wnid in shown], [*SYNSETS, *more])
    return root


def make_folders(root: Path, *, train: int = 2, val: int = 2, seed: int = 0) -> Path:
    """The same photos in train/nXXXXXXXX/ and val/nXXXXXXXX/, without the development kit."""
    shown = val_wnids(val)
    files = [(f"train/{w}/{name}", data) for w, f in train_files(train, seed) for name, data in f]
    for wnid, (name, data) in zip(shown, val_files(shown, seed), strict=True):
        files.append((f"val/{wnid}/{name}", data))
    for path, data in files:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return root


def pack_imagenet(source: Path, split: str = "train", **options: object) -> PackResult:
    """Pack a split into ``<source>/<split>_lmdb``, in this process unless told."""
    options.setdefault("num_workers", 0)
    return finish(pack("imagenet", source, options.pop("target", None), split, **options))


def train_files(each: int, seed: int = 0) -> list[tuple[str, list[tuple[str, bytes]]]]:
    """WordNet id -> (file name, JPEG bytes), in an order that isn't sorted."""
    rng = np.random.default_rng(seed)
    return [
        (wnid, [(f"{wnid}_{n}.JPEG", draw_photo(rng, wnid)) for n in range(10 + each, 10, -1)])
        for _, wnid, _, children in SYNSETS
        if not children
    ]


def val_wnids(each: int) -> list[str]:
    """The class of each validation photo, in the order of their numbers."""
    return [WNIDS[(3 * place + 1) % len(WNIDS)] for place in range(each * len(WNIDS))]


def val_files(shown: list[str], seed: int = 0) -> list[tuple[str, bytes]]:
    """(file name, JPEG bytes) of validation photos of these classes."""
    rng = np.random.default_rng(seed + 1)
    return [
        (f"ILSVRC2012_val_{number:08d}.JPEG", draw_photo(rng, wnid))
        for number, wnid in enumerate(shown, 1)
    ]


def draw_photo(rng: np.random.Generator, wnid: str) -> bytes:
    """A JPEG of the colour of its class with noise; its sides differ from photo to photo."""
    height, width = rng.integers(32, 64, 2)
    shade = np.array([COLORS[wnid] * 60 + 30, 200 - COLORS[wnid] * 50, 128])
    return jpeg(np.clip(shade + rng.integers(-25, 26, (height, width, 3)), 0, 255))


def jpeg(pixels: np.ndarray, mode: str = "RGB", kind: str = "JPEG", **options: object) -> bytes:
    """(H, W, 3) RGB, 0 to 255, as an image file."""
    file = io.BytesIO()
    image = Image.fromarray(pixels.astype(np.uint8)).convert(mode)
    image.save(file, kind, **options)
    return file.getvalue()


def tar_of(
    files: list[tuple[str, bytes]], form: int = tarfile.GNU_FORMAT, **header: object
) -> bytes:
    """A tar archive as bytes; ``header`` sets fields of every member's header."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(data), 1_340_000_000
            for field, value in header.items():
                setattr(member, field, value)
            archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


def write_tar(path: Path, files: list[tuple[str, bytes]]) -> None:
    path.write_bytes(tar_of(files))


def write_devkit(root: Path, truth: list[int], synsets: list[tuple] = SYNSETS) -> None:
    """The development kit with the class (by its ILSVRC2012_ID) of each validation photo."""
    text = "".join(f"{number}\n" for number in truth).encode()
    kit = [(f"{DEVKIT}/readme.txt", b"made up"), (META, meta_mat(synsets)), (TRUTH, text)]
    (root / DEVKIT_TAR).write_bytes(gzip.compress(tar_of(kit)))


def meta_mat(synsets: list[tuple] = SYNSETS, *, order: str = "<", compress: bool = True) -> bytes:
    """A MAT-file of level 5 with the struct array 'synsets'.

    Args:
        synsets: (ILSVRC2012_ID, WNID, words, children) of each.
        order: "<" or ">" for all numbers in it.
        compress: as MATLAB does it unless told not to.
    """
    mat = Mat(order)
    fields = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children")
    cells = b"".join(
        mat.number(number)
        + mat.text(wnid)
        + mat.text(words)
        + mat.text(f"what a {words} is")
        + mat.number(len(children))
        + mat.row(children)
        for number, wnid, words, children in synsets
    )
    variable = mat.struct("synsets", fields, len(synsets), cells)
    if compress:
        packed = zlib.compress(variable)
        variable = struct.pack(order + "II", 15, len(packed)) + packed
    return mat.header() + variable


class Mat:
    """Writes the elements of a MAT-file of level 5 (see MathWorks, "MAT-File Format")."""

    def __init__(self, order: str = "<") -> None:
        self.order = order

    def header(self) -> bytes:
        mark = b"IM" if self.order == "<" else b"MI"
        text = b"MATLAB 5.0 MAT-file, made up".ljust(124)
        return text + struct.pack(self.order + "H", 0x0100) + mark

    def element(self, kind: int, data: bytes) -> bytes:
        if 0 < len(data) <= 4:  # the small form
            return struct.pack(self.order + "I", len(data) << 16 | kind) + data.ljust(4, b"\0")
        return struct.pack(self.order + "II", kind, len(data)) + data + bytes(-len(data) % 8)

    def matrix(self, kind: int, shape: tuple[int, ...], body: bytes, name: str = "") -> bytes:
        flags = self.element(6, struct.pack(self.order + "II", kind, 0))
        sizes = self.element(5, struct.pack(f"{self.order}{len(shape)}i", *shape))
        return self.element(14, flags + sizes + self.element(1, name.encode()) + body)

    def number(self, value: float) -> bytes:
        """A 1x1 double; whole numbers below 256 are stored as a byte, as MATLAB does."""
        if value == int(value) and 0 <= value < 256:
            return self.matrix(6, (1, 1), self.element(2, bytes([int(value)])))
        return self.matrix(6, (1, 1), self.element(9, struct.pack(self.order + "d", value)))

    def row(self, values: list[int]) -> bytes:
        return self.matrix(6, (1, len(values)), self.element(2, bytes(values)))

    def text(self, value: str) -> bytes:
        data = value.encode("utf-16-le" if self.order == "<" else "utf-16-be")
        return self.matrix(4, (1, len(value)), self.element(4, data))

    def struct(self, name: str, fields: tuple[str, ...], count: int, cells: bytes) -> bytes:
        width = max(map(len, fields)) + 1
        names = b"".join(field.encode().ljust(width, b"\0") for field in fields)
        head = self.element(5, struct.pack(self.order + "i", width)) + self.element(1, names)
        return self.matrix(2, (count, 1), head + cells, name)
