"""Made-up runs for what is told of them: folders, confused classes, exported files."""

import json
from pathlib import Path

import numpy as np
import onnx
import torch

from hatcli.export.metadata import append_metadata, seal
from hatcli.metrics.mean_iou import MeanIoU
from hatcli.recipes.runs.folder import checkpoint_in, write_json

NAMES = ["road", "car", "sky"]
COUNTS = np.array([[90, 10, 0, 0], [30, 60, 5, 5], [0, 0, 0, 0]])


def metric_of(counts):
    metric = MeanIoU(3, NAMES)
    metric.confusion = torch.from_numpy(counts)
    return metric


def exported_file(path: Path, **entries) -> Path:
    image = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([node], "g", [image], [output])
    path.write_bytes(onnx.helper.make_model(graph).SerializeToString())
    values = {"hat.step": "qat", "hat.metrics": json.dumps({"mIoU": 61.5}), **entries}
    append_metadata(path, values)
    seal(path)
    return path


CHECK = {"tolerance": 1e-4, "comparisons": [
    {"shape": [1, 3, 64, 64], "largest": 8e-6, "relative": 6e-7, "same_class": 1.0}]}  # fmt: skip


def made_run(root: Path, name: str, step: str, *, before=(), summary=True, **more) -> Path:
    """A run folder such as a training leaves, with made-up numbers."""
    run_folder = root / "unet" / name
    run_folder.mkdir(parents=True)
    best = checkpoint_in(run_folder, step)
    best.write_bytes(b"")
    own = {"step": step, "metrics": {"mIoU": 60.0 + len(before)}, "file": str(best)}
    command = f"hat train unet --step {step} data_rootdir=/data optim.lr=0.1"
    (run_folder / "args.txt").write_text(command + "\n")
    (run_folder / "config.py").write_text("task = 'segmentation'\nepochs = 30\n")
    write_json(run_folder / "env.json", {"torch": "2.14.1"})
    (run_folder / "train.log").write_text(
        f"2026-11-22 05:15:19  unet · step {step} · cpu · batch 4\n"
        "2026-11-22 05:15:20  warning: layer a: all results are 0\n"
        "a second line of it\n"
        "2026-11-22 05:19:19  warning: layer a: all results are 0\n"
    )
    rows = [
        {"epoch": 1, "train/loss": 2.0, "lr": 0.1, "seconds": 10.0, "val/mIoU": 50.0},
        {"epoch": 2, "train/loss": 1.0, "lr": 0.1, "seconds": 20.0, "val/mIoU": 60.0},
        {"epoch": 3, "train/loss": 1.5, "lr": 0.1, "seconds": 12.5, "val/mIoU": 55.0},
    ]
    if step in ("float", "qat"):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (run_folder / "metrics.jsonl").write_text(text)
    steps = [*before, own]
    if summary:
        document = {"step": step, "best_by": "mIoU", "metrics": {"mIoU": own["metrics"]["mIoU"]},
                    "checkpoints": {"best": best.name}, "steps": steps, "best_epoch": 2,
                    "epochs": 3, "findings": ["b: odd"], **more}  # fmt: skip
        write_json(run_folder / "summary.json", document)
    return run_folder
