"""The official Cityscapes score, from the dataset's own scripts."""

import contextlib
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from torch import Tensor

from hatcli.data.classes import CITYSCAPES, IGNORE
from hatcli.errors import DataError, UsageError
from hatcli.metrics.mean_iou import predictions

SCRIPTS = "cityscapesscripts"
INSTALL = "pip install 'hatcli[cityscapes]'"


def label_ids() -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Look-up table (256,) from train ids to the published label ids; others become 0."""
    table = np.zeros(256, np.uint8)
    for row in CITYSCAPES:
        if row.train_id != IGNORE:
            table[row.train_id] = row.id
    return table


class LabelImageWriter:
    """Writes predictions as the label images that the official scripts and server take.

    Args:
        folder: where to; made if missing.
        gt_dir: folder of the official label images, whose sizes the predictions must have.
        upsample: how scores become maps of the labels' size; that of the metric.
    """

    def __init__(
        self,
        folder: Path,
        gt_dir: Path | None,
        upsample: Literal["nearest", "bilinear"] = "nearest",
    ) -> None:
        self.folder = folder
        self._upsample = upsample
        self._truths = find_truths(gt_dir) if gt_dir is not None else {}
        self._checks_truth = gt_dir is not None
        self._table = label_ids()
        self.pairs: list[tuple[str, str]] = []
        folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, images: Tensor, scores: Tensor, targets: Tensor, names: list[str]) -> None:
        """Write one batch.

        Raises:
            DataError: a sample has no label image in the given folder.
        """
        height, width = targets.shape[-2:]
        maps = predictions(scores, (height, width), self._upsample).cpu().numpy()
        for name, prediction in zip(names, maps, strict=True):
            path = self.folder / f"{name}_labelIds.png"
            if self._checks_truth:
                truth = self._truths.get(name)
                if truth is None:
                    raise DataError(f"{name}: no such label image below the --gt-dir folder")
                with Image.open(truth) as picture:
                    width, height = picture.size
                self.pairs.append((str(path), str(truth)))
            Image.fromarray(self._table[prediction[:height, :width]]).save(path)


def find_truths(gt_dir: Path) -> dict[str, Path]:
    """Sample name -> official label image, anywhere below a folder.

    Raises:
        UsageError: there is none.
    """
    suffix = "_gtFine_labelIds.png"
    found = {path.name.removesuffix(suffix): path for path in sorted(gt_dir.rglob(f"*{suffix}"))}
    if not found:
        raise UsageError(
            f"{gt_dir}: holds no *{suffix}",
            "give the folder gtFine/val; the official scripts read no archive, so unzip it first",
        )
    return found


def require_official() -> None:
    """Fail early when the official scripts are missing.

    Raises:
        UsageError: cityscapesscripts is not installed.
    """
    if importlib.util.find_spec(SCRIPTS) is None:
        raise UsageError(f"--official needs {SCRIPTS}", INSTALL)


def official_scores(pairs: Iterable[tuple[str, str]]) -> dict[str, float]:
    """IoU of each class and their mean, in percent, as the official scripts compute them.

    Args:
        pairs: paths of predicted and of true label images.
    """
    with contextlib.redirect_stdout(sys.stderr):
        scripts = importlib.import_module(f"{SCRIPTS}.evaluation.evalPixelLevelSemanticLabeling")
        predicted, truths = zip(*pairs, strict=True)
        scripts.args.evalInstLevelScore = False  # ranks instances, which a class map has not
        scripts.args.JSONOutput = False
        scripts.args.quiet = True
        result = scripts.evaluateImgLists(list(predicted), list(truths), scripts.args)
    trained = {row.name for row in CITYSCAPES if row.train_id != IGNORE}
    scores = {name: 100 * value for name, value in result["classScores"].items() if name in trained}
    return {
        "mIoU": 100 * result["averageScoreClasses"],
        **{f"IoU.{name}": value for name, value in scores.items()},
    }
