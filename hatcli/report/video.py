"""A video file, written frame by frame."""

import os
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from hatcli.data.video import load_av
from hatcli.errors import HatError
from hatcli.report.pictures import Picture

_CODECS = (("libx264", {"crf": "20", "preset": "veryfast"}), ("mpeg4", {"q": "3"}))


class VideoWriter:
    """Writes an .mp4; it gets its name at the end of the ``with`` block, if that ends well.

    Args:
        path: of the file; its folder is made if it is missing.
        rate: frames a second.

    Raises:
        UsageError: PyAV is missing.
    """

    def __init__(self, path: Path, rate: Fraction) -> None:
        self._av = load_av()
        self.path = path
        self._rate = rate
        self._partial = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
        self._container: Any = None
        self._stream: Any = None

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._container is None:
            return
        try:
            if kind is None:
                self._container.mux(self._stream.encode(None))
            self._container.close()
            if kind is None:
                self._partial.replace(self.path)
        except (self._av.FFmpegError, OSError) as failure:
            raise self._failed(failure) from failure
        finally:
            self._partial.unlink(missing_ok=True)

    def add(self, picture: Picture) -> None:
        """Write one frame, (H, W, 3) uint8 RGB; all have one size.

        Raises:
            HatError: the disk doesn't take it.
        """
        height, width = (side + side % 2 for side in picture.shape[:2])  # colours are in 2x2
        if picture.shape[:2] != (height, width):
            below, right = height - picture.shape[0], width - picture.shape[1]
            picture = np.pad(picture, ((0, below), (0, right), (0, 0)), mode="edge")
        try:
            if self._container is None:
                self._open(width, height)
            frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            self._container.mux(self._stream.encode(frame))
        except (self._av.FFmpegError, OSError) as error:
            raise self._failed(error) from error

    def _open(self, width: int, height: int) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._container = self._av.open(str(self._partial), "w", format="mp4")
        known = self._av.codecs_available
        codec, options = next(choice for choice in _CODECS if choice[0] in known)
        self._stream = self._container.add_stream(codec, rate=self._rate, options=options)
        self._stream.width, self._stream.height = width, height
        self._stream.pix_fmt = "yuv420p"

    def _failed(self, error: Exception) -> HatError:
        reason = getattr(error, "strerror", None) or error
        return HatError(f"{self.path}: cannot write it: {reason}")
