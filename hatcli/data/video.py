"""Frames of a video, by PyAV, which is an extra."""

import importlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hatcli.errors import DataError, UsageError

SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".wmv", ".flv"}
)
INSTALL = "pip install 'hatcli[video]'"


def load_av() -> Any:
    """The module ``av``.

    Raises:
        UsageError: it isn't installed, or doesn't work here.
    """
    try:
        return importlib.import_module("av")
    except ImportError as error:
        if getattr(error, "name", None) == "av":
            raise UsageError("a video needs the package av", INSTALL) from error
        raise UsageError(f"a video needs the package av, which fails: {error}", INSTALL) from error


class Video:
    """The first picture stream of a video file.

    Args:
        path: the file.
        every: of how many frames one is given, the first of them.

    Attributes:
        rate: frames a second that are given.
        count: frames that are given, as far as the file says; None where it doesn't.

    Raises:
        UsageError: PyAV is missing.
        DataError: it is no video, or holds no picture stream.
    """

    def __init__(self, path: Path, every: int = 1) -> None:
        self.path = path
        self._av = load_av()
        self._every = every
        with self._opened() as container:
            stream = container.streams.video[0]
            rate = stream.average_rate or stream.guessed_rate or Fraction(25)
            frames = stream.frames
            if not frames and stream.duration is not None:
                frames = round(stream.duration * stream.time_base * rate)
        self.rate: Fraction = rate / every
        self.count: int | None = -(-frames // every) if frames else None

    def frames(self) -> Iterator[NDArray[np.uint8]]:
        """(H, W, 3) uint8 RGB each, upright, in the order in which they are shown.

        Raises:
            DataError: a part of the file is damaged.
        """
        with self._opened() as container:
            try:
                for number, frame in enumerate(container.decode(video=0)):
                    if number % self._every:
                        continue
                    pixels = frame.to_ndarray(format="rgb24")
                    quarters = round(frame.rotation / 90) % 4  # counter-clockwise
                    yield np.ascontiguousarray(np.rot90(pixels, quarters))
            except self._av.FFmpegError as error:
                raise DataError(f"damaged video ({_reason(error)}): {self.path}") from error

    def _opened(self) -> Any:
        try:
            container = self._av.open(str(self.path))
        except (self._av.FFmpegError, ValueError) as error:
            raise DataError(f"not a video ({_reason(error)}): {self.path}") from error
        if not container.streams.video:
            container.close()
            raise DataError(f"a file without pictures: {self.path}")
        return container


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
