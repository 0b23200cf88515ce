"""hat bench train: where the time of a recipe's step goes, and what would make it shorter."""

import os
import resource
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from itertools import count, cycle
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hatcli.config import Config
from hatcli.data.loader import Batch, SampleSource
from hatcli.data.transforms import MIXES, TRANSFORMS
from hatcli.engine.device import pick_device, pick_dtype
from hatcli.engine.evaluation import LoadedBatch
from hatcli.engine.training import FitSettings
from hatcli.errors import ConfigError, UsageError
from hatcli.events import Job, Note, Progress
from hatcli.recipes.bench.advice import Alternative, BenchResult, Part, advice
from hatcli.recipes.bench.step_times import PARTS, Stopwatch, reading_times, watched_step
from hatcli.recipes.build import (
    build_batch_transforms,
    build_loader,
    build_loss,
    build_model,
)
from hatcli.recipes.training.teacher import with_teacher
from hatcli.recipes.training.train import new_training
from hatcli.recipes.training.workbench import open_training_set

WARM_UP = 2
READ_SAMPLES = 8
MOST_PIXELS = 2**24  # of a batch that is tried at twice the size


@dataclass(frozen=True)
class _Bench:
    """What all measurements share."""

    config: Config
    device: torch.device
    steps: int
    loss: nn.Module
    teacher: nn.Module | None
    prepare: nn.Module
    model: nn.Module

    def stepper(self, watch: Stopwatch, **changes: Any) -> Callable[[LoadedBatch], None]:
        """A step of the recipe, from a fresh copy of the model.

        Args:
            changes: of the node ``fit``.
        """
        fit = {**self.config["fit"], **changes}
        config = Config(self.config.name, {**self.config.values, "fit": fit})
        dtype = pick_dtype(fit.get("precision", "auto"), self.device)
        training = new_training(config, deepcopy(self.model), self.device, dtype)
        training.model.train()
        settings = FitSettings(
            1,
            dtype=dtype,
            clip_grad_norm=fit.get("clip_grad_norm"),
            on_nonfinite="stop",
            compile=fit.get("compile", False),
        )
        return watched_step(
            training,
            settings,
            watch,
            loss=self.loss,
            prepare=self.prepare,
            teacher=self.teacher,
        )


def bench_train(
    config: Config, *, device: str = "auto", steps: int = 5, tries_compile: bool = False
) -> Job[BenchResult]:
    """Take some steps of a recipe, then of the recipe in other number formats and layouts.

    Args:
        config: complete and checked. Where its data can't be opened, random images of the same
            size take its place, and nothing is said of reading.
        device: "auto", "cpu", "cuda" or "cuda:N".
        steps: that are measured of each; two before them are not.
        tries_compile: whether ``torch.compile`` is among the alternatives; on a CPU it takes
            minutes before its first step.
    """
    if steps < 1:
        raise UsageError(f"--steps {steps}: give at least 1")
    place = pick_device(device)
    try:
        train_set: SampleSource | None = open_training_set(config)
    except ConfigError:
        raise
    except UsageError as error:
        train_set = None
        yield Note(f"{error.message}: random images take its place")
    source: Any = train_set if train_set is not None else object()
    loss, teacher, notes = with_teacher(config, build_loss(config, source), place)
    yield from notes
    prepare = build_batch_transforms(config).to(place)
    bench = _Bench(config, place, steps, loss.to(place), teacher, prepare, build_model(config))
    batches = _random_batches(config) if train_set is None else _batches(config, train_set)
    parts, batch = yield from _measure_step(bench, batches)
    reading = {} if train_set is None else _measure_reading(config, train_set)
    alternatives = yield from _measure_alternatives(bench, batch, tries_compile=tries_compile)
    seconds = sum(part.seconds for part in parts)
    result = BenchResult(
        config.name,
        str(place),
        len(batch[2]),
        tuple(batch[0].shape[2:]),
        len(batch[2]) / seconds,
        _peak_memory(place),
        parts,
        reading,
        alternatives,
        [],
    )
    return advice(result, config, has_data=train_set is not None)


def _measure_step(
    bench: _Bench, batches: Iterator[LoadedBatch]
) -> Job[tuple[list[Part], LoadedBatch]]:
    """Seconds of each part of a step, in the mean, and one of the batches."""
    watch = Stopwatch(bench.device)
    step = bench.stepper(watch)
    total = bench.steps + WARM_UP
    for number in range(total):
        if number == WARM_UP:
            watch.reset()
        watch.start()
        batch = next(batches)
        watch.mark("waiting")
        step(batch)
        yield Progress("the recipe's steps", number + 1, total, "steps")
    return [
        Part(name, watch.seconds[name] / bench.steps) for name in PARTS if watch.seconds[name] > 0
    ], batch


def _measure_alternatives(
    bench: _Bench, batch: LoadedBatch, *, tries_compile: bool
) -> Job[list[Alternative]]:
    """The same step in other ways, in turn, so that what else the machine does hits all."""
    own = _own_way(bench)
    ways = {_name(way): way for way in [*_ways(bench), own]}
    tries: list[tuple[str, dict[str, Any], LoadedBatch, int | None]] = [
        (name, way, batch, None) for name, way in ways.items()
    ]
    if batch[0].numel() // 3 * 2 <= MOST_PIXELS:
        tries.append((f"batch {2 * len(batch[2])}", own, _doubled(batch), None))
    cores, threads = len(os.sched_getaffinity(0)), torch.get_num_threads()
    if bench.device.type == "cpu" and threads < cores:
        tries.append((f"{cores} threads", own, batch, cores))
    if tries_compile:
        tries.append(("compile", {**own, "compile": True}, batch, None))
    steppers = []
    for name, way, data, many in tries:
        watch = Stopwatch(bench.device)
        steppers.append((name, bench.stepper(watch, **way), watch, data, many))
    seconds: dict[str, list[float]] = {name: [] for name, *_ in steppers}
    total = (bench.steps + WARM_UP) * len(steppers)
    done = 0
    for number in range(bench.steps + WARM_UP):
        for name, step, watch, data, many in steppers:
            torch.set_num_threads(many or threads)
            try:
                watch.reset()
                step(data)
            finally:
                torch.set_num_threads(threads)
            if number >= WARM_UP:
                seconds[name].append(sum(watch.seconds.values()) / len(data[2]))
            done += 1
            yield Progress("other ways to compute", done, total, "steps")
    fastest = {name: min(values) for name, values in seconds.items()}  # of what others disturb
    base = fastest[_name(_ways(bench)[0])]
    return [
        Alternative(name, value, value / base, name == _name(own), ways.get(name, {}))
        for name, value in fastest.items()
    ]


def _ways(bench: _Bench) -> list[dict[str, Any]]:
    """Number formats and layouts, float32 NCHW first."""
    formats = ["float32", "bf16"] if bench.device.type == "cpu" else ["float32", "bf16", "fp16"]
    return [
        {"precision": precision, "channels_last": last, "compile": False}
        for precision in formats
        for last in (False, True)
    ]


def _own_way(bench: _Bench) -> dict[str, Any]:
    fit = bench.config["fit"]
    dtype = pick_dtype(fit.get("precision", "auto"), bench.device)
    short = {torch.float32: "float32", torch.bfloat16: "bf16", torch.float16: "fp16"}
    return {
        "precision": short[dtype],
        "channels_last": fit.get("channels_last", True),
        "compile": fit.get("compile", False),
    }


def _name(way: dict[str, Any]) -> str:
    words = [way["precision"], "channels_last" if way["channels_last"] else "NCHW"]
    return " ".join([*words, *(["compile"] if way["compile"] else [])])


def _batches(config: Config, train_set: SampleSource) -> Iterator[LoadedBatch]:
    loader = build_loader(config, "train", train_set)
    for epoch in count():
        yield from loader.epoch(epoch)


def _random_batches(config: Config) -> Iterator[LoadedBatch]:
    """One batch of noise again and again, of the size that the transforms give."""
    size = config["train"].get("batch_size", 1)
    height, width = _crop(config)
    classes = config["model"].get("num_classes", 2)
    generator = torch.Generator().manual_seed(config["seed"])
    images = torch.randint(256, (size, height, width, 3), dtype=torch.uint8, generator=generator)
    shape = (size, height, width) if config["task"] == "segmentation" else (size,)
    kind = torch.uint8 if config["task"] == "segmentation" else torch.int64
    targets = torch.randint(classes, shape, generator=generator).to(kind)
    batch = Batch(images.permute(0, 3, 1, 2), targets, [f"noise{n}" for n in range(size)])
    mix = config["train"].get("mix")
    if mix is not None:
        mixed, shares = MIXES.build(mix)(batch.images, batch.targets, np.random.default_rng(0))
        batch = Batch(mixed, shares, batch.names)
    return cycle([batch])


def _crop(config: Config) -> tuple[int, int]:
    """Height and width of a training image."""
    for node in reversed(config["train"].get("transforms", [])):
        if "height" in node and "width" in node:
            return node["height"], node["width"]
        if "size" in node:
            size = node["size"]
            return (size, size) if isinstance(size, int) else (size[0], size[1])
    shape = config["deploy"].get("shape")
    if shape is None:
        raise UsageError(
            f"{config.name}: no size of a training image is known without its data",
            "set deploy.shape",
        )
    return shape[2], shape[3]


def _doubled(batch: LoadedBatch) -> LoadedBatch:
    images, targets, names = batch
    twice = torch.cat([targets, targets]) if isinstance(targets, Tensor) else [*targets, *targets]
    return torch.cat([images, images]), twice, [*names, *names]


def _measure_reading(config: Config, train_set: SampleSource) -> dict[str, float]:
    node = config["train"]
    transforms = [TRANSFORMS.build(transform) for transform in node.get("transforms", [])]
    reading_times(train_set, transforms, 1)  # the first one opens files
    return reading_times(train_set, transforms, READ_SAMPLES)


def _peak_memory(device: torch.device) -> int:
    """Bytes at most: of the GPU, or of this process without those that read."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
