"""A user's module with a dataset and a loss that fail on demand, and a config for them."""

import os
import resource
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hatcli.data import loader
from hatcli.data.datasets import DATASETS
from hatcli.data.loader import sample_generator
from hatcli.losses import LOSSES

LENGTH, BATCH = 40, 4
CONFIG = """
task = "classification"
imports = [{module!r}]
epochs = 2
model = {{"type": "mobilenetv1", "num_classes": 4, "alpha": 0.125}}
train = {{"dataset": {{"type": "Faulty"}}, "batch_size": {batch}}}
val = {{"dataset": {{"type": "Faulty"}}, "batch_size": 20}}
batch_transforms = [{{"type": "Normalize", "mean": [128.0] * 3, "std": [64.0] * 3}}]
loss = {{"type": "SickLoss"}}
metric = {{"type": "Accuracy", "topk": [1]}}
optim = {{"type": "sgd", "lr": 0.01}}
fit = {{"precision": "float32", "log_every": 1}}
deploy = {{"shape": [1, 3, 32, 32]}}
"""


@DATASETS.register
class Faulty:
    """Noise in four classes; at the end of the first epoch something happens.

    Args:
        fault: a signal's name, "exit", "exception", "hang", "label", "memory" or none.
    """

    classes = ("a", "b", "c", "d")

    def __init__(self, fault: str = "", root: Path | None = None) -> None:
        self.fault = fault
        order = sample_generator(0, 0, -1).permutation(LENGTH)
        self.last = int(order[-BATCH])  # the first sample of the last batch
        if fault == "hang":
            loader.WORKER_TIMEOUT_S = 1

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == self.last:
            self._fail()
        side = 32
        if self.fault == "memory":
            side = 2048
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limit = pages * resource.getpagesize() + 2**27
            resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        image = np.random.default_rng(index).integers(0, 256, (side, side, 3), np.uint8)
        label = 7 if self.fault == "label" and index == self.last else index % 4
        return {"image": image, "label": label, "name": f"noise{index}"}

    def _fail(self) -> None:
        if self.fault.startswith("SIG"):
            os.kill(os.getpid(), signal.Signals[self.fault])
        if self.fault == "exit":
            os._exit(3)
        if self.fault == "exception":
            raise KeyError("left out")
        if self.fault == "hang":
            time.sleep(1000)


@LOSSES.register
class SickLoss(nn.Module):
    """Cross-entropy that is NaN, or raises, from a step on; steps count from 1."""

    def __init__(self, nan_at: int = 0, error_at: int = 0) -> None:
        super().__init__()
        self.nan_at, self.error_at, self.step = nan_at, error_at, 0

    def forward(self, scores: Tensor, targets: Tensor) -> Tensor:
        self.step += 1
        if self.step == self.error_at:
            raise ZeroDivisionError("sick")
        value = F.cross_entropy(scores, targets)
        return value * torch.nan if self.step == self.nan_at else value


def write_faulty_config(folder: Path) -> Path:
    path = folder / "faulty_config.py"
    path.write_text(CONFIG.format(module=str(Path(__file__).resolve()), batch=BATCH))
    return path
