"""Takes pictures through a model, batch by batch, and times it."""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hatcli.data.classes import palette_of
from hatcli.data.picture_source import Picture, PictureSource, VideoPictures
from hatcli.data.transforms import TRANSFORMS
from hatcli.data.way_back import WayBack, transform_image
from hatcli.errors import DataError
from hatcli.metrics import METRICS
from hatcli.metrics.mean_iou import predictions
from hatcli.recipes.predicting.files import Format, PredictionWriter
from hatcli.recipes.scoring.model_file import ModelFile
from hatcli.report.boxes import distinct_palette

PHASES = ("read", "model", "draw")


@dataclass(frozen=True)
class PredictSettings:
    """How to predict.

    Attributes:
        out: folder to write to; None for "predictions", and nothing of a classification.
        form: of what is written of a segmentation.
        as_jpeg: whether drawn pictures are JPEG files and not PNG.
        batch_size: pictures that go through the model together, where they have one size.
        top: classes named of each picture.
        every: of how many frames of a video one is taken.
        on_error: whether a damaged picture ends the job, or is left out and counted.
    """

    out: Path | None = None
    form: Format = "overlay"
    as_jpeg: bool = False
    batch_size: int = 1
    top: int = 3
    every: int = 1
    on_error: Literal["fail", "skip"] = "fail"


@dataclass(frozen=True)
class Prediction:
    """What the model sees in one picture.

    Attributes:
        name: of the picture in its source.
        classes: names and percents, the highest first: of a classification the probability
            (None where the model gives labels alone), of a segmentation the share of the pixels.
        file: what was written; None where nothing was.
    """

    name: str
    width: int
    height: int
    classes: tuple[tuple[str, float | None], ...]
    file: Path | None = None


class PredictRun:
    """Takes pictures through the model, batch by batch.

    Attributes:
        found: predictions so far.
        failed: what is wrong with the pictures that were left out.
    """

    def __init__(
        self,
        opened: ModelFile,
        device: torch.device,
        settings: PredictSettings,
        classes: Sequence[str],
    ) -> None:
        config = opened.config
        self._opened, self._device, self._settings = opened, device, settings
        self._is_map = config["task"] == "segmentation"
        self._transforms = [TRANSFORMS.build(node) for node in config["val"].get("transforms", [])]
        metric = METRICS.build(config["metric"])
        self._upsample: Any = getattr(metric, "upsample", "nearest")
        count = getattr(metric, "num_classes", None) or config["model"].get("num_classes")
        self._classes = list(classes) or [str(number) for number in range(count or 256)]
        self.clock = Clock()
        self.found: list[Prediction] = []
        self.failed: list[str] = []

    def writer(self, folder: Path, sources: Sequence[Path]) -> PredictionWriter:
        """What draws and writes this run's label maps."""
        names, settings = self._classes, self._settings
        palette = palette_of(names) or distinct_palette(len(names), range(len(names)))
        return PredictionWriter(
            folder, settings.form, palette, names, as_jpeg=settings.as_jpeg, sources=sources
        )

    def take(self, source: PictureSource, writer: PredictionWriter) -> Iterator[int]:
        """Predict all pictures of a source; gives how many are done after each batch."""
        waiting: list[_Waiting] = []
        pictures = iter(source)
        while True:
            with self.clock.phase("read"):
                picture = next(pictures, None)
                read = None if picture is None else self._read(picture)
            fits = read is None or not waiting or read.image.shape == waiting[0].image.shape
            if waiting and (picture is None or not fits):
                yield self._finish(waiting, source, writer)
                waiting = []
            if picture is None:
                return
            if read is not None:
                waiting.append(read)
            if len(waiting) == self._settings.batch_size:
                yield self._finish(waiting, source, writer)
                waiting = []

    def _read(self, picture: Picture) -> "_Waiting | None":
        """A picture, transformed; None where it is damaged and left out."""
        try:
            pixels = picture.pixels()
        except DataError as error:
            if self._settings.on_error == "fail":
                hint = error.hint or "--on-error skip leaves out what is damaged"
                raise DataError(error.message, hint) from error
            self.failed.append(error.message)
            return None
        image, way = transform_image(pixels, self._transforms, picture.name, has_map=self._is_map)
        return _Waiting(picture, pixels, image, way)

    def _finish(
        self, waiting: Sequence["_Waiting"], source: PictureSource, writer: PredictionWriter
    ) -> int:
        """Predict one batch; how many pictures are done then."""
        with self.clock.phase("model"):
            scores = self._scores(np.stack([one.image for one in waiting]))
        with self.clock.phase("draw"):
            if self._is_map:
                size = waiting[0].image.shape[0], waiting[0].image.shape[1]
                labels = predictions(scores, size, self._upsample).cpu().numpy()
                for one, label in zip(waiting, labels, strict=True):
                    assert one.way is not None
                    self.found.append(self._drawn(one, one.way(label), source, writer))
            else:
                for one, row in zip(waiting, scores, strict=True):
                    self.found.append(self._named(one, row))
        self.clock.counts.append(len(waiting))
        return len(self.found) + len(self.failed)

    @torch.inference_mode()
    def _scores(self, images: NDArray[np.uint8]) -> Tensor:
        """Scores, or labels, on the CPU, of images (N, H, W, 3)."""
        batch = torch.from_numpy(images).permute(0, 3, 1, 2).to(self._device)
        return self._opened.model(self._opened.prepare(batch)).cpu()

    def _drawn(
        self,
        one: "_Waiting",
        label: NDArray[np.uint8],
        source: PictureSource,
        writer: PredictionWriter,
    ) -> Prediction:
        name, pixels = one.picture.name, one.pixels
        if isinstance(source, VideoPictures):
            file = writer.write_frame(source.path, source.video.rate, name, pixels, label)
        else:
            file = writer.write(name, pixels, label)
        counts = np.bincount(label.ravel(), minlength=256)[: len(self._classes)]
        shares = 100 * counts / label.size
        classes = tuple((self._classes[i], float(shares[i])) for i in self._best(shares))
        return Prediction(name, pixels.shape[1], pixels.shape[0], classes, file)

    def _named(self, one: "_Waiting", scores: Tensor) -> Prediction:
        height, width = one.pixels.shape[:2]
        if not scores.is_floating_point():  # the file holds the argmax
            label = int(scores.reshape(-1)[0])
            return Prediction(one.picture.name, width, height, ((self._name(label), None),))
        percents = (100 * scores.double().flatten().softmax(0)).numpy()
        classes = tuple((self._name(i), float(percents[i])) for i in self._best(percents))
        return Prediction(one.picture.name, width, height, classes)

    def _best(self, percents: NDArray[np.floating]) -> list[int]:
        """The first few classes, the highest first; those of 0 % are left out."""
        order = np.argsort(-percents, kind="stable")[: self._settings.top].tolist()
        return [index for index in order if percents[index] > 0]

    def _name(self, label: int) -> str:
        return self._classes[label] if 0 <= label < len(self._classes) else str(label)


@dataclass
class Clock:
    """Seconds of each phase; those of the first batch apart."""

    first: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    later: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    counts: list[int] = field(default_factory=list)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Counts the time that a ``with`` block takes."""
        started = time.perf_counter()
        yield
        spent = self.later if self.counts else self.first
        spent[name] += time.perf_counter() - started

    def means(self) -> dict[str, float]:
        """Milliseconds a picture."""
        spent, counted = (
            (self.later, self.counts[1:]) if self.counts[1:] else (self.first, self.counts)
        )
        return {name: 1000 * spent[name] / max(sum(counted), 1) for name in PHASES}


@dataclass(frozen=True)
class _Waiting:
    """A picture on its way into the model.

    Attributes:
        image: after the transforms.
    """

    picture: Picture
    pixels: NDArray[np.uint8]
    image: NDArray[np.uint8]
    way: WayBack | None
