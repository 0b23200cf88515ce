"""A config that trains in seconds on a CPU, and the data that it needs."""

from pathlib import Path

TINY_CONFIG = """
task = "segmentation"
data_rootdir = {root!r}
epochs = 2
model = {{"type": "unet", "num_classes": 19, "alpha": 0.25, "bn_momentum": 0.5}}
train = {{
    "dataset": {{"type": "Cityscapes", "path": "train_lmdb"}},
    "transforms": [
        {{"type": "RandomScale", "low": 0.5, "high": 2.0}},
        {{"type": "RandomCrop", "height": 64, "width": 64}},
        {{"type": "RandomFlip"}},
    ],
    "batch_size": 2,
    "num_workers": 0,
}}
val = {{
    "dataset": {{"type": "Cityscapes", "path": "val_lmdb"}},
    "transforms": [{{"type": "PadToMultiple", "divisor": 64}}],
    "batch_size": 2,
}}
batch_transforms = [{{"type": "RgbToYuv444"}}]
loss = {{"type": "CrossEntropy"}}
metric = {{"type": "MeanIoU", "num_classes": 19}}
optim = {{"type": "sgd", "lr": 0.05, "momentum": 0.9}}
schedule = {{"type": "poly"}}
fit = {{"precision": "float32"}}
deploy = {{"head": "4", "argmax": True, "shape": [1, 3, 64, 128]}}
"""


def write_tiny_config(folder: Path, data: Path) -> Path:
    path = folder / "tiny.py"
    path.write_text(TINY_CONFIG.format(root=str(data)))
    return path
