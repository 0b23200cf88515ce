"""What a prediction looks like, and where it goes."""

from collections.abc import Sequence
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hatcli.data.picture_source import SUFFIXES
from hatcli.errors import UsageError
from hatcli.report.pictures import (
    GAP,
    Palette,
    Picture,
    overlay,
    with_legend,
    with_titles,
    write_image,
)
from hatcli.report.video import VideoWriter

Format = Literal["overlay", "side", "palette", "ids", "json"]
DRAWN = ("overlay", "side")
JPEG_QUALITY = 92

LabelMap = NDArray[np.uint8]


class PredictionWriter:
    """Draws label maps and writes them to a folder; of a video, drawn ones as a video.

    To be used as a context: videos get their names at its end.

    Args:
        folder: where to; made if it is missing.
        form: "overlay": the classes' colours over the picture; "side": that beside the picture,
            with a legend; "palette": class indices as a PNG with the classes' colours; "ids":
            the same in grey; "json": no picture.
        palette: RGB, 0 to 255, of each class.
        names: of the classes.
        as_jpeg: whether drawn pictures are JPEG files and not PNG.
        sources: files that must not be written over.
    """

    def __init__(
        self,
        folder: Path,
        form: Format,
        palette: Palette,
        names: Sequence[str],
        *,
        as_jpeg: bool,
        sources: Sequence[Path],
    ) -> None:
        self._folder = folder
        self._form = form
        self._palette = palette
        self._names = names
        self._as_jpeg = as_jpeg and form in DRAWN
        self._sources = {source.resolve() for source in sources}
        self._taken: set[str] = set()
        self._videos: dict[Path, VideoWriter] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "PredictionWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.__exit__(*exception)  # type: ignore[arg-type]

    def write(self, name: str, pixels: Picture, label: LabelMap) -> Path | None:
        """One picture; the file that holds it, or None where the format has none.

        Args:
            name: of the picture, with or without a suffix.
            pixels: (H, W, 3) uint8 RGB.
            label: (H, W) class indices; 255 is no class.

        Raises:
            UsageError: the file is one of the sources.
            HatError: the disk doesn't take it.
        """
        if self._form == "json":
            return None
        path = self._free(name, ".jpg" if self._as_jpeg else ".png")
        if self._form in DRAWN:
            image = Image.fromarray(self._drawn(pixels, label))
            if self._as_jpeg:
                write_image(path, image, "jpeg", quality=JPEG_QUALITY)
            else:
                write_image(path, image, "png", compress_level=1)
            return path
        image = Image.fromarray(label)
        if self._form == "palette":
            colors = [part for color in self._palette for part in color]
            image.putpalette(colors + [0] * (3 * 256 - len(colors)))
        write_image(path, image, "png")
        return path

    def write_frame(
        self, source: Path, rate: Fraction, name: str, pixels: Picture, label: LabelMap
    ) -> Path | None:
        """One frame of a video: the video that holds it, or a picture where it isn't drawn.

        Args:
            source: the video that it is from.
            rate: frames a second.
        """
        if self._form not in DRAWN:
            return self.write(name, pixels, label)
        writer = self._videos.get(source)
        if writer is None:
            path = self._free(source.stem, ".mp4")
            writer = self._stack.enter_context(VideoWriter(path, rate))
            self._videos[source] = writer
        writer.add(self._drawn(pixels, label, whole_legend=True))
        return writer.path

    def _drawn(self, pixels: Picture, label: LabelMap, *, whole_legend: bool = False) -> Picture:
        mixed = overlay(pixels, label, self._palette)
        if self._form == "overlay":
            return mixed
        gap = np.full((pixels.shape[0], GAP, 3), 255, np.uint8)
        picture = np.concatenate([pixels, gap, mixed], axis=1)
        picture = with_titles(picture, ["image", "prediction"])
        shown = np.unique(label)
        legend = None if whole_legend else shown[shown < len(self._names)].tolist()
        return with_legend(picture, self._palette, self._names, shown=legend)

    def _free(self, name: str, suffix: str) -> Path:
        """A path that no other picture of this run has."""
        end = Path(name).suffix
        stem = name.removesuffix(end) if end.lower() in SUFFIXES else name
        chosen, number = stem, 1
        while chosen in self._taken:
            number += 1
            chosen = f"{stem}-{number}"
        self._taken.add(chosen)
        path = self._folder / f"{chosen}{suffix}"
        if path.resolve() in self._sources:
            raise UsageError(f"{path}: would be written over, and is a source", "give another -o")
        return path
