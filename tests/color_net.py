"""A user's module with networks that see red, green and blue, without any training."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from hatcli.data.datasets import DATASETS
from hatcli.engine.checkpoint import load_checkpoint, save_checkpoint
from hatcli.models import MODELS
from hatcli.quantize.calibrate import calibrate
from hatcli.quantize.integer_graph import to_data
from hatcli.quantize.lower import lower
from hatcli.quantize.prepare import prepare
from hatcli.quantize.spec import read_spec
from hatcli.recipes.build import build_batch_transforms, model_from_checkpoint

NAMES = ["red", "green", "blue"]
COLORS = np.array([(200, 30, 40), (50, 180, 20), (10, 60, 220)], np.uint8)

CONFIG = {
    "task": "segmentation",
    "imports": [__file__],
    "model": {"type": "ColorMap"},
    "train": {"dataset": {"type": "ColorStripes"}},
    "val": {
        "dataset": {"type": "ColorStripes"},
        "transforms": [{"type": "PadToMultiple", "divisor": 16}],
    },
    "batch_transforms": [{"type": "Normalize", "mean": [0.0] * 3, "std": [51.0] * 3}],
    "loss": {"type": "CrossEntropy"},
    "metric": {"type": "MeanIoU", "num_classes": 3},
    "epochs": 1,
    "deploy": {"argmax": True, "shape": [1, 3, 32, 48]},
}


@MODELS.register
class ColorMap(nn.Module):
    """Scores of a pixel: how red, green and blue it is."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        nn.init.zeros_(self.conv.bias)
        self.conv.weight.data = torch.eye(3).view(3, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


@MODELS.register
class ColorClass(ColorMap):
    """Scores of a picture: those of its mean pixel."""

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).mean((2, 3))


@DATASETS.register
class ColorStripes:
    """Four pictures with their maps."""

    classes = tuple(NAMES)

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict:
        label = stripes(32, 48, shift=index)
        return {"image": COLORS[label], "label": label, "name": f"stripes {index}"}


def stripes(height: int, width: int, *, shift: int = 0) -> np.ndarray:
    """(height, width) uint8: upright stripes of the three classes, one row all blue."""
    label = np.tile((np.arange(width) // 8 + shift) % 3, (height, 1)).astype(np.uint8)
    label[height // 2] = 2
    return label


def write_picture(path: Path, label: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(COLORS[label]).save(path, **({"quality": 100} if ".jp" in path.name else {}))
    return path


def write_checkpoint(path: Path, **changes: object) -> Path:
    """A checkpoint of a network that needs no training."""
    values = {**CONFIG, **changes}
    model = ColorClass() if values["task"] == "classification" else ColorMap()
    content = {
        "step": "float",
        "epoch": 1,
        "hat_version": "0",
        "config": {"name": "color", "values": values},
        "classes": NAMES,
        "metrics": {},
        "lineage": [],
        "state_dict": model.state_dict(),
        "ema_state_dict": None,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(path, content)
    return path


def write_integers(path: Path, checkpoint: Path) -> Path:
    """The integers of that network, as a checkpoint."""
    content = load_checkpoint(checkpoint)
    config, model = model_from_checkpoint(content)
    images = torch.from_numpy(COLORS[stripes(32, 48)]).permute(2, 0, 1)[None]
    graph = prepare(model, read_spec({"observer": {"type": "min_max"}}))
    for _ in calibrate(graph, [build_batch_transforms(config)(images)], total=1):
        pass
    integers = {"step": "int_infer", "integer_graph": to_data(lower(graph).graph)}
    save_checkpoint(path, {**content, **integers})
    return path
