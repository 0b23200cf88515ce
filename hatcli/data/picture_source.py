"""Pictures to look at: of files, folders, packs and videos, one after the other."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import ImageOps

from hatcli.data.datasets._decode import stored_image
from hatcli.data.packers._images import MAX_PIXELS, as_rgb, load_pixels, look_at_image
from hatcli.data.packs.container import find_pack_type
from hatcli.data.packs.reader import open_pack
from hatcli.data.video import SUFFIXES as VIDEOS
from hatcli.data.video import Video
from hatcli.errors import DataError, UsageError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"})

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Picture:
    """One picture that isn't read yet.

    Attributes:
        name: of the sample, or the path of the file below its folder.
        pixels: reads it: (H, W, 3) uint8 RGB, upright.
    """

    name: str
    pixels: Callable[[], Pixels]


def open_pictures(path: Path, *, every: int = 1, leave_out: Path | None = None) -> "PictureSource":
    """The pictures of a file, a folder, a pack or a video.

    Args:
        path: a video is known by its suffix, a pack by what the folder holds; in any other
            folder all files below it with the suffix of a picture count.
        every: of how many frames of a video one is taken.
        leave_out: folder within ``path`` whose files don't count.

    Raises:
        UsageError: there is nothing there, or no picture; or PyAV is missing for a video.
        DataError: the pack or the video can't be opened.
    """
    if path.is_dir():
        if find_pack_type(path) is not None:
            return PackedPictures(path)
        return Files(path, _files_below(path, leave_out))
    if not path.is_file():
        raise UsageError(f"no picture, folder, pack or video: {path}")
    if path.suffix.lower() in VIDEOS:
        return VideoPictures(path, every)
    return Files(path.parent, [path])


class Files:
    """Picture files.

    Args:
        path: the folder that names are relative to.
        files: below it.

    Attributes:
        count: how many there are.
        classes: that the source is labelled with: none.
    """

    classes: tuple[str, ...] = ()

    def __init__(self, path: Path, files: Sequence[Path]) -> None:
        self.path = path
        self.files = files
        self.count = len(files)

    def __iter__(self) -> Iterator[Picture]:
        for file in self.files:
            name = file.relative_to(self.path).as_posix()
            yield Picture(name, partial(read_picture, file))


class PackedPictures:
    """The images of a pack of any kind.

    Attributes:
        count: how many there are.
        classes: names of the classes that it is labelled with, if it is.

    Raises:
        UsageError: its samples have no images.
        PackError: it can't be trusted.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pack = open_pack(path)
        fields = self._pack.meta["fields"]
        missing = [name for name in ("image", "height", "width", "name") if name not in fields]
        if missing:
            raise UsageError(f"{path}: its samples have no {missing[0]!r}")
        self.count = len(self._pack)
        self.classes = tuple(self._pack.meta.get("classes", ()))

    def __iter__(self) -> Iterator[Picture]:
        for index in range(self.count):
            yield self._picture(index)

    def _picture(self, index: int) -> Picture:
        try:
            record = self._pack[index]
        except DataError as error:
            return Picture(f"sample {index}", partial(_fail, error))
        return Picture(_plain(str(record["name"])), partial(stored_image, record))


class VideoPictures:
    """The frames of a video.

    Attributes:
        video: that they are from.
        count: how many frames there are, where the file says.
    """

    classes: tuple[str, ...] = ()

    def __init__(self, path: Path, every: int) -> None:
        self.path = path
        self.video = Video(path, every)
        self.every = every
        self.count = self.video.count

    def __iter__(self) -> Iterator[Picture]:
        number = 0
        frames = self.video.frames()
        while True:
            name = f"{self.path.stem}-{number:06d}"
            try:
                pixels = next(frames, None)
            except DataError as error:
                yield Picture(name, partial(_fail, error))
                return
            if pixels is None:
                return
            yield Picture(name, partial(_given, pixels))
            number += self.every


PictureSource = Files | PackedPictures | VideoPictures


def read_picture(path: Path) -> Pixels:
    """A picture file as (H, W, 3) uint8 RGB, turned upright as its EXIF says; alpha is dropped.

    Raises:
        DataError: it can't be read, is no picture, is damaged, too large, animated, or has more
            than 8 bits a channel.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror}): {path}") from error
    try:
        image = look_at_image(data, str(path), max_pixels=MAX_PIXELS, check="header").image
    except DataError as error:
        raise DataError(error.message) from error  # its hints are those of packing
    assert image is not None
    load_pixels(image, str(path))
    return np.array(as_rgb(ImageOps.exif_transpose(image)))


def _files_below(folder: Path, leave_out: Path | None) -> list[Path]:
    left_out = leave_out.resolve() if leave_out is not None else None
    if left_out == folder.resolve():
        raise UsageError(f"{folder}: pictures would come from and go to it", "give another -o")
    files = [
        file
        for file in sorted(folder.rglob("*"))
        if file.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
        and file.is_file()
        and not (left_out is not None and file.resolve().is_relative_to(left_out))
    ]
    if not files:
        videos = sorted(f.name for f in folder.iterdir() if f.suffix.lower() in VIDEOS)
        hint = f"name a video itself: {folder / videos[0]}" if videos else None
        raise UsageError(f"{folder}: holds no pictures ({' '.join(sorted(SUFFIXES))})", hint)
    return files


def _plain(name: str) -> str:
    """A sample's name without what would lead out of the folder that results go to."""
    parts = [
        part for part in PurePosixPath(name.replace("\\", "/")).parts if part not in ("/", "..")
    ]
    return "/".join(parts) or "unnamed"


def _given(pixels: Pixels) -> Pixels:
    return pixels


def _fail(error: DataError) -> Pixels:
    raise error
