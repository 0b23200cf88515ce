"""What a training shows beside its figures: the first batch, and what is taken for what."""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from hatcli.config import Config
from hatcli.data.classes import IGNORE
from hatcli.data.facts import Rules
from hatcli.data.loader import Batch, SampleSource
from hatcli.engine.distributed import is_main
from hatcli.engine.evaluation import LoadedBatch, Metric
from hatcli.engine.loop import Batches
from hatcli.errors import HatError
from hatcli.events import EpochDone, Event, Warned, percents
from hatcli.recipes.data.show import sheet_of, tiles_of
from hatcli.recipes.data.source import Source
from hatcli.recipes.runs.confusion import confusion_of, save_confusion, write_class_table
from hatcli.recipes.runs.folder import RunFolder
from hatcli.report.confusion import draw_confusion
from hatcli.report.pictures import write_png

MOST_TILES = 16


class RunPictures:
    """Draws into the folder plots/ of a run; a disk that takes no picture ends no training.

    Args:
        metric: that the validation counts with; of one that has an attribute ``confusion`` the
            matrix and the table of its classes are drawn.
    """

    def __init__(
        self, run: RunFolder, config: Config, step: str, train_set: SampleSource, metric: Metric
    ) -> None:
        self._run, self._metric = run, metric
        self._title = f"{config.name}: {step}"
        rules = Rules(
            config["model"].get("num_classes"), config["loss"].get("ignore_index", IGNORE)
        )
        self._source = Source("train", config.name, train_set, rules)
        self._batch: LoadedBatch | None = None

    def watched(self, batches: Batches) -> Batches:
        """The same batches; the first one is kept until it is drawn."""
        return _Watched(batches, self)

    def keep(self, batch: LoadedBatch) -> None:
        """Keep a batch as the first one."""
        self._batch = batch

    def following(
        self, events: Iterator[Event], is_saved_as_best: Callable[[int], bool]
    ) -> Iterator[Event]:
        """The events of a training; pictures are drawn as it goes on.

        Args:
            is_saved_as_best: tells of an epoch, once its event was handled.
        """
        if not is_main():
            yield from events
            return
        for event in events:
            if self._batch is not None:
                yield from self._draw_batch(self._batch)
                self._batch = None
            yield event
            if isinstance(event, EpochDone) and event.is_best and is_saved_as_best(event.epoch):
                yield from self._draw_confusion(event)

    def _draw_batch(self, batch: LoadedBatch) -> Iterator[Event]:
        """plots/first_batch.png: augmented and mixed, as it goes to the batch transforms."""
        images, targets, names = (_on_cpu(part, MOST_TILES) for part in batch)
        tiles = list(tiles_of(Batch(images, targets, names), self._source))
        title = f"{self._title}, first batch" + (
            f": {len(tiles)} of {len(batch[2])}" if len(tiles) < len(batch[2]) else ""
        )
        try:
            sheet = sheet_of(tiles, self._source, title)
            write_png(self._run.path / "plots" / "first_batch.png", sheet)
        except HatError as error:
            yield Warned(error.message)

    def _draw_confusion(self, event: EpochDone) -> Iterator[Event]:
        """plots/confusion_matrix.png, per_class.csv, confusion.json; of the best epoch so far."""
        found = confusion_of(self._metric)
        if found is None:
            return
        confusion, names = found
        figures = percents(event.val, ", ")
        title = f"{self._title}, epoch {event.epoch} (the best so far): {figures}"
        try:
            save_confusion(self._run.path, self._metric)
            picture = draw_confusion(confusion, names, title)
            write_png(self._run.path / "plots" / "confusion_matrix.png", picture)
            write_class_table(self._run.path / "per_class.csv", confusion, names)
        except HatError as error:
            yield Warned(error.message)
        except OSError as error:
            yield Warned(f"{error.filename}: {error.strerror}")


class _Watched:
    """Batches whose first one is shown to somebody."""

    def __init__(self, batches: Batches, pictures: RunPictures) -> None:
        self.samples_a_batch, self.process = batches.samples_a_batch, batches.process
        self._batches, self._pictures = batches, pictures
        self._is_first = True

    def __len__(self) -> int:
        return len(self._batches)

    def epoch(self, number: int, start: int = 0) -> Iterator[LoadedBatch]:
        for batch in self._batches.epoch(number, start):
            if self._is_first:
                self._pictures.keep(batch)
                self._is_first = False
            yield batch


def _on_cpu(part: Any, most: int) -> Any:
    """The first of a batch's images, targets or names."""
    return part[:most].cpu() if isinstance(part, Tensor) else part[:most]
