"""A look at each label before it reaches a loss: on a GPU an illegal one ends the program."""

from typing import Any

import numpy as np

from hatcli.config import Config
from hatcli.data.classes import IGNORE
from hatcli.data.loader import SampleTransform
from hatcli.errors import DataError


class LegalLabels:
    """A transform that changes nothing and refuses labels that the model has no score for.

    Args:
        num_classes: that the model scores.
        ignored: the label that carries no loss.
    """

    def __init__(self, num_classes: int, ignored: int) -> None:
        self._num_classes, self._ignored = num_classes, ignored

    def __call__(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """The sample as it is.

        Raises:
            DataError: a label is neither a class nor the ignored one.
        """
        label = np.asarray(sample["label"])
        if label.size and (label.min() < 0 or label.max() >= self._num_classes):
            illegal = (label < 0) | (label >= self._num_classes)
            illegal &= label != self._ignored
            if illegal.any():
                values = np.unique(label[illegal])
                raise DataError(
                    f"{sample['name']!r}: label {', '.join(map(str, values[:8]))} is neither one "
                    f"of the {self._num_classes} classes of the model nor {self._ignored}",
                    "count the classes from 0, set model.num_classes, or loss.ignore_index",
                )
        return sample


def label_checks(config: Config) -> list[SampleTransform]:
    """The check that a config's training samples need; none where the model doesn't say."""
    classes = config["model"].get("num_classes")
    if config["task"] == "detection" or not isinstance(classes, int):
        return []
    return [LegalLabels(classes, config["loss"].get("ignore_index", IGNORE))]
