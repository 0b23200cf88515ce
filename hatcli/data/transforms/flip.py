"""Mirror a sample."""

from typing import Any

import numpy as np

from hatcli.data.transforms import TRANSFORMS
from hatcli.data.transforms._boxes import mirrored_boxes, moved_maps
from hatcli.errors import ConfigError


@TRANSFORMS.register
class RandomFlip:
    """The sample, with left and right exchanged in a share of the cases.

    Args:
        p: the share, 0 to 1.
    """

    def __init__(self, p: float = 0.5) -> None:
        if not 0 <= p <= 1:
            raise ConfigError(f"RandomFlip: p must be from 0 to 1, got {p}")
        self.p = p

    def __call__(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Mirror a sample, or give it back as it is."""
        if rng.random() >= self.p:
            return sample
        mirrored = np.arange(sample["image"].shape[1])[::-1]
        result = {**sample, "image": sample["image"].take(mirrored, axis=1)}  # half a copy's time
        result.update(moved_maps(sample, lambda values, _: values[:, ::-1].copy()))
        return result | mirrored_boxes(sample, len(mirrored))
