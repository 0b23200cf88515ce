"""How fast MeanIoU counts an image, against the usual numpy bincount with a mask.

Both count the same 8-bit index maps of a made-up 1024x2048 street-like image into 19 classes;
rounds alternate, and the ratio is the median over the rounds of process CPU times.

Usage: python benchmarks/miou_update.py [--rounds 31] [--max-ratio 0.85]
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from hatcli.metrics.mean_iou import MeanIoU

HEIGHT, WIDTH, CLASSES, IGNORE = 1024, 2048, 19, 255

Array = np.ndarray[Any, Any]


def made_up_maps(seed: int) -> tuple[Array, Array]:
    """Labels in patches, a tenth of them ignored, and predictions that err in smaller patches."""
    generator = np.random.default_rng(seed)

    def patches(side: int, values: Array) -> Array:
        return values.repeat(side, 0).repeat(side, 1)

    def classes(side: int) -> Array:
        size = (HEIGHT // side, WIDTH // side)
        return patches(side, generator.integers(0, CLASSES, size).astype(np.uint8))

    labels, mistakes = classes(32), classes(4)
    is_ignored = patches(32, generator.random((HEIGHT // 32, WIDTH // 32)) < 0.1)
    is_wrong = patches(4, generator.random((HEIGHT // 4, WIDTH // 4)) < 0.1)
    predicted = np.where(is_wrong, mistakes, labels)
    labels[is_ignored] = IGNORE
    return predicted, labels


def usual(predicted: Array, labels: Array) -> Array:
    """The confusion matrix by mask and bincount."""
    is_labelled = labels != IGNORE
    codes = CLASSES * labels[is_labelled].astype(np.int64) + predicted[is_labelled]
    return np.bincount(codes, minlength=CLASSES**2).reshape(CLASSES, CLASSES)


def cpu_ms(function: Callable[[], object]) -> float:
    """CPU time of one call, in ms."""
    start = time.process_time_ns()
    function()
    return (time.process_time_ns() - start) / 1e6


def main() -> int:
    """Print the ratio; 1 if it is above --max-ratio or if the two counts differ."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--max-ratio", type=float, default=0.85)
    options = parser.parse_args()
    torch.set_num_threads(1)
    predicted, labels = made_up_maps(seed=0)
    tensors = torch.from_numpy(predicted)[None], torch.from_numpy(labels)[None]
    metric = MeanIoU(CLASSES)
    metric.update(*tensors)
    if not np.array_equal(metric.confusion[:, :CLASSES].numpy(), usual(predicted, labels)):
        print("the two confusion matrices differ", file=sys.stderr)
        return 1
    ours, theirs = [], []
    for _ in range(options.rounds):
        theirs.append(cpu_ms(lambda: usual(predicted, labels)))
        ours.append(cpu_ms(lambda: metric.update(*tensors)))
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    print(f"MeanIoU.update                {statistics.median(ours):6.2f} ms CPU")
    print(f"numpy mask and bincount       {statistics.median(theirs):6.2f} ms CPU")
    print(f"ratio {ratio:.2f} (target: at most {options.max_ratio:g})")
    return int(ratio > options.max_ratio)


if __name__ == "__main__":
    sys.exit(main())
