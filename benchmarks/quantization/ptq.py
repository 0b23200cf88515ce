"""Accuracy of post-training quantization: ours beside onnxruntime's own tool, in one run.

    python benchmarks/quantization/ptq.py WEIGHTS --calibration ROOT --test ROOT
        [--setting channel|tensor|w4]

The setting is that of the weights: 8 bits with a scale for each channel, 8 bits with one scale for
the whole weight, or 4 bits with a scale for each channel (which onnxruntime's tool doesn't do for
convolutions). Activations have 8 bits in all of them.

ROOT is a folder with train_lmdb and val_lmdb of ``hat pack imagenet``. Calibration sees the first
20 images of each class of the calibration root's train split. Our variant is chosen on the test
root's train split, which is small; its val split is scored once for each row, where the setting
isn't "channel" for all of our variants, chosen or not. Every row is an
int8 file run by onnxruntime: agreement is the share of images where it and the float model put
the same class first, SQNR is that of the scores, in decibels.
"""

import argparse
import logging
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn

from hatcli.config import Config, load_config
from hatcli.engine.weights import load_foreign_weights
from hatcli.events import finish
from hatcli.export.onnx import Deployed, export_onnx
from hatcli.export.parity import compare_codes
from hatcli.export.quantized import export_quantized
from hatcli.quantize.adaround import round_weights
from hatcli.quantize.bias_correction import correct_biases
from hatcli.quantize.calibrate import calibrate
from hatcli.quantize.equalize import equalize
from hatcli.quantize.lower import lower
from hatcli.quantize.prepare import prepare
from hatcli.quantize.spec import Spec, read_spec
from hatcli.recipes.build import (
    build_batch_transforms,
    build_dataset,
    build_loader,
    build_model,
)

MIN_MAX, MSE = {"type": "min_max"}, {"type": "mse"}
CHANNEL: dict[str, dict[str, Any]] = {
    f"hat {observer}{' + bias correction' if correct else ''}": {
        "observer": {"type": observer},
        "bias_correction": correct,
    }
    for observer in ("min_max", "percentile", "mse")
    for correct in (False, True)
}
PLAIN: dict[str, dict[str, Any]] = {
    "min_max": {"observer": MIN_MAX, "bias_correction": False},
    "min_max + bias correction": {"observer": MIN_MAX},
    "adaround": {"adaround": True},  # which corrects biases as well
    "mse weights + adaround": {"weight_observer": MSE, "adaround": True},
}
EQUALIZED: dict[str, dict[str, Any]] = {
    "equalize + bias correction": {"equalize": True},
    "equalize + adaround": {"equalize": True, "adaround": True},
}
FOUR_BITS: dict[str, dict[str, Any]] = {
    "mse weights + bias correction": {"weight_observer": MSE},
    "equalize + mse weights + adaround": {
        "equalize": True,
        "weight_observer": MSE,
        "adaround": True,
    },
}
OURS: dict[str, dict[str, dict[str, Any]]] = {
    "channel": CHANNEL,
    "tensor": PLAIN | EQUALIZED,
    "w4": PLAIN | FOUR_BITS,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "channel": {},
    "tensor": {"weight_granularity": "tensor"},
    "w4": {"weight_bits": 4},
}
PEERS = {
    "onnxruntime MinMax": CalibrationMethod.MinMax,
    "onnxruntime Entropy": CalibrationMethod.Entropy,
    "onnxruntime Percentile": CalibrationMethod.Percentile,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("--config", default="efficientnet_lite0")
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--per-class", type=int, default=20)
    parser.add_argument("--setting", choices=list(SETTINGS), default="channel")
    parser.add_argument("--skip-peers", action="store_true")
    given = parser.parse_args()
    logging.getLogger().setLevel(logging.ERROR)
    config = load_config(given.config, ["val.num_workers=0", "val.batch_size=20"])
    model = build_model(config)
    load_foreign_weights(model, given.weights)
    model.eval()
    images = first_of_each_class(config, given.calibration, given.per_class)
    chosen_on, test = (
        list(split(config, given.test, which)) for which in ("train_lmdb", "val_lmdb")
    )
    print(f"calibration {sum(map(len, images))} images, test {sum(len(x) for x, _ in test)}")
    with tempfile.TemporaryDirectory() as folder:
        run(
            model,
            images,
            chosen_on,
            test,
            Path(folder),
            setting=given.setting,
            skip_peers=given.skip_peers or given.setting == "w4",
        )


def run(
    model: nn.Module,
    images: list[Tensor],
    chosen_on: list[tuple[Tensor, Tensor]],
    test: list[tuple[Tensor, Tensor]],
    folder: Path,
    *,
    setting: str,
    skip_peers: bool,
) -> None:
    files: dict[str, Path] = {}
    seconds: dict[str, float] = {}
    ours = OURS[setting]
    for number, (name, node) in enumerate(ours.items()):
        started = time.perf_counter()
        files[name] = folder / f"ours{number}.onnx"
        write_ours(model, images, files[name], read_spec({**SETTINGS[setting], **node}))
        seconds[name] = time.perf_counter() - started
        print(f"  {name}: {seconds[name]:.0f} s", flush=True)
    print("\nour variants on the images that choose between them")
    scored = {name: score(files[name], model, chosen_on) for name in ours}
    show(scored, seconds, files)
    best = max(scored, key=lambda name: scored[name]["sqnr"])
    print(f"chosen: {best}")
    rows = [best] if setting == "channel" else list(ours)
    if not skip_peers:
        float_file = folder / "float.onnx"
        write_float(model, float_file)
        for number, (name, method) in enumerate(PEERS.items()):
            started = time.perf_counter()
            files[name] = folder / f"peer{number}.onnx"
            write_peer(float_file, files[name], images, method, per_channel=setting == "channel")
            seconds[name] = time.perf_counter() - started
            rows.append(name)
    print("\ntest images")
    table = {name: score(files[name], model, test) for name in rows}
    show(table, seconds, files)
    peers = [table[name] for name in rows if name in PEERS]
    if peers:
        lead = table[best]["sqnr"] - max(row["sqnr"] for row in peers)
        agree = table[best]["agree"] - max(row["agree"] for row in peers)
        print(f"\nours above the best peer: {lead:+.2f} dB, {agree:+g} images that agree")


def split(config: Config, root: Path, pack: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Prepared batches of a pack, with the transforms of evaluation."""
    own = config.with_overrides([f"data_rootdir={root}", f"val.dataset.path={pack}"])
    prepare_images = build_batch_transforms(own)
    for images, labels, _ in build_loader(own, "val", build_dataset(own, "val")).epoch(0):
        yield prepare_images(images).contiguous(), labels


def first_of_each_class(config: Config, root: Path, count: int) -> list[Tensor]:
    """The first images of each class, by name, in batches."""
    by_class: dict[int, list[Tensor]] = defaultdict(list)
    for images, labels in split(config, root, "train_lmdb"):
        for image, label in zip(images, labels.tolist(), strict=True):
            if len(by_class[label]) < count:
                by_class[label].append(image)
    everything = torch.stack([image for images in by_class.values() for image in images])
    return [everything[start : start + 20] for start in range(0, len(everything), 20)]


def write_ours(model: nn.Module, images: list[Tensor], path: Path, spec: Spec) -> None:
    graph = prepare(model, spec)
    total = sum(map(len, images))
    if spec.equalize:
        finish(equalize(graph, images, total=total))
    finish(calibrate(graph, images, total=total))
    if spec.adaround is not None:
        finish(round_weights(graph, images, spec.adaround, correct=spec.bias_correction))
    elif spec.bias_correction:
        finish(correct_biases(graph, images))
    integers = lower(graph).graph
    path.write_bytes(
        export_quantized(integers, (1, 3, 224, 224), dynamic="batch").SerializeToString()
    )
    compare_codes(path, integers, images[:1], where=path.name)


def write_float(model: nn.Module, path: Path) -> None:
    raw = path.with_name("raw.onnx")
    exported = export_onnx(Deployed(model), (1, 3, 224, 224), dynamic="none")
    raw.write_bytes(exported.model.SerializeToString())
    quant_pre_process(str(raw), str(path))


def write_peer(
    source: Path,
    path: Path,
    images: list[Tensor],
    method: CalibrationMethod,
    *,
    per_channel: bool,
) -> None:
    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.images = iter(image[None].numpy() for batch in images for image in batch)

        def get_next(self) -> dict[str, Any] | None:
            image = next(self.images, None)
            return None if image is None else {"images": image}

    quantize_static(
        str(source),
        str(path),
        Reader(),
        per_channel=per_channel,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=method,
    )


def score(path: Path, model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Of one int8 file: images right, images that agree with float, SQNR in dB."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    right = agree = count = 0
    signal = noise = 0.0
    for images, labels in batches:
        with torch.inference_mode():
            wanted = model(images).numpy()
        found = np.concatenate([session.run(None, {"images": x[None].numpy()})[0] for x in images])
        right += int((found.argmax(1) == labels.numpy()).sum())
        agree += int((found.argmax(1) == wanted.argmax(1)).sum())
        signal += float(np.square(wanted, dtype=np.float64).sum())
        noise += float(np.square(wanted.astype(np.float64) - found).sum())
        count += len(labels)
    return {
        "right": right,
        "agree": agree,
        "images": count,
        "sqnr": 10 * np.log10(signal / noise),
    }


def show(
    rows: dict[str, dict[str, float]], seconds: dict[str, float], files: dict[str, Path]
) -> None:
    print(f"{'':34}{'top-1':>8}{'agree':>8}{'of':>6}{'SQNR dB':>9}{'convs':>8}{'s':>7}")
    for name, row in rows.items():
        print(
            f"{name:34}{row['right']:>8.0f}{row['agree']:>8.0f}{row['images']:>6.0f}"
            f"{row['sqnr']:>9.2f}{integer_convolutions(files[name]):>8}{seconds[name]:>7.0f}"
        )


def integer_convolutions(path: Path) -> str:
    """Convolutions that onnxruntime runs as integers, of all."""
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = f"{folder}/optimised.onnx"
        options.log_severity_level = 4
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        kinds = Counter(n.op_type for n in onnx.load(options.optimized_model_filepath).graph.node)
    integer = kinds["QLinearConv"]
    return f"{integer}/{integer + kinds['Conv'] + kinds['FusedConv'] + kinds['NhwcFusedConv']}"


if __name__ == "__main__":
    main()
