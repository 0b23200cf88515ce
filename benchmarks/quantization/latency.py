"""int8 against float32 in onnxruntime: CPU time of one picture, one thread, and size of the file.

    python benchmarks/quantization/latency.py [MODEL ...] [--operators]

Each network is exported in float and, calibrated on random pictures, as integers; the two run in
turn in one process, and the median of the paired ratios counts. Weights are random with calibrated
batch norms: the time doesn't depend on them. With --operators the time of each kernel is shown.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import nn

from hatcli.export.onnx import Deployed, export_onnx
from hatcli.export.quantized import export_quantized
from hatcli.models import MODELS
from hatcli.quantize.calibrate import calibrate
from hatcli.quantize.lower import lower
from hatcli.quantize.prepare import prepare
from hatcli.quantize.spec import read_spec

ROUNDS = 30
UNET: dict[str, Any] = {"type": "unet"}
CASES: dict[str, tuple[dict[str, Any], tuple[int, ...], float, float]] = {  # at most, aim
    "efficientnet_lite0": ({"type": "efficientnet_lite0"}, (1, 3, 224, 224), 0.57, 0.50),
    "mobilenetv2": ({"type": "mobilenetv2"}, (1, 3, 224, 224), 0.60, 0.50),
    "resnet18": ({"type": "resnet18"}, (1, 3, 224, 224), 0.40, 0.33),
    "unet": (UNET, (1, 3, 512, 1024), 0.75, 0.50),
    "unet nearest": ({**UNET, "upsample": "nearest"}, (1, 3, 512, 1024), 0.75, 0.50),
    "vargconvnet": ({"type": "vargconvnet"}, (1, 3, 224, 224), 0.40, 0.33),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="*", default=list(CASES))
    parser.add_argument("--operators", action="store_true")
    given = parser.parse_args()
    torch.manual_seed(0)
    print(f"{'':20}float ms  int8 ms  ratio  most   aim     MB  share of float's")
    for name in given.models:
        node, shape, most, aim = CASES[name]
        with tempfile.TemporaryDirectory() as folder:
            files = exported(node, shape, Path(folder))
            times = timed(files, shape)
            ratio = statistics.median(
                b / a for a, b in zip(times["float"], times["int8"], strict=True)
            )
            sizes = {kind: path.stat().st_size / 1e6 for kind, path in files.items()}
            print(
                f"{name:20}{1000 * statistics.median(times['float']):>8.1f}"
                f"{1000 * statistics.median(times['int8']):>9.1f}{ratio:>7.2f}"
                f"{most:>6.2f}{aim:>6.2f}"
                f"{sizes['int8']:>7.2f}{sizes['int8'] / sizes['float']:>7.2f}",
                flush=True,
            )
            if given.operators:
                show_operators(files, shape)


def exported(node: dict[str, Any], shape: tuple[int, ...], folder: Path) -> dict[str, Path]:
    """The float and the integer file of a network."""
    model = MODELS.build(node)
    keep_head: Any = getattr(model, "keep_head", None)
    model = model if keep_head is None else keep_head("4")
    small = torch.randn(4, 3, 128, 128)
    with torch.no_grad():
        model.train()
        for _ in range(3):
            model(small)
    model.eval()
    argmax = keep_head is not None
    files = {kind: folder / f"{kind}.onnx" for kind in ("float", "int8")}
    exported_float = export_onnx(Deployed(model, argmax=argmax), shape)
    files["float"].write_bytes(exported_float.model.SerializeToString())
    graph = quantized(model, small)
    integers = export_quantized(lower(graph).graph, shape, argmax=argmax)
    files["int8"].write_bytes(integers.SerializeToString())
    return files


def quantized(model: nn.Module, images: torch.Tensor) -> Any:
    graph = prepare(model, read_spec({"observer": {"type": "min_max"}}))
    for _ in calibrate(graph, [images], total=len(images)):
        pass
    return graph


def timed(files: dict[str, Path], shape: tuple[int, ...]) -> dict[str, list[float]]:
    """CPU seconds of each round."""
    feed = {"images": torch.randn(shape).numpy()}
    sessions = {kind: session(path) for kind, path in files.items()}
    times: dict[str, list[float]] = {kind: [] for kind in files}
    for number in range(ROUNDS + 3):
        for kind, opened in sessions.items():
            started = time.process_time()
            opened.run(None, feed)
            if number >= 3:
                times[kind].append(time.process_time() - started)
    return times


def session(path: Path, *, profile: str | None = None) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = profile
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def show_operators(files: dict[str, Path], shape: tuple[int, ...]) -> None:
    """Where each file spends its time, by kind of kernel."""
    feed = {"images": torch.randn(shape).numpy()}
    for kind, path in files.items():
        opened = session(path, profile=str(path.with_suffix("")))
        for _ in range(ROUNDS):
            opened.run(None, feed)
        events = json.loads(Path(opened.end_profiling()).read_text(encoding="utf-8"))
        spent: dict[str, float] = defaultdict(float)
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                spent[event["args"]["op_name"]] += event["dur"] / 1000 / ROUNDS
        shares = sorted(spent.items(), key=lambda item: -item[1])[:7]
        print(f"    {kind:6}", ", ".join(f"{name} {ms:.2f} ms" for name, ms in shares))


if __name__ == "__main__":
    main()
