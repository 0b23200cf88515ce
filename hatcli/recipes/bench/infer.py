"""hat bench infer: model files side by side: size, accuracy, speed and memory."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from hatcli.config import Config
from hatcli.engine.evaluation import evaluate
from hatcli.errors import HatError, UsageError
from hatcli.events import Job, Note, Progress, Warned
from hatcli.recipes.build import build_dataset, build_loader, build_metric
from hatcli.recipes.machine import processor, usable_cores
from hatcli.recipes.scoring.model_file import ModelFile, open_model_file
from hatcli.recipes.training.calibrate import EvenSubset

ROUNDS = 20
PAUSE_S = 0.02  # before each measurement: threads of the one before still spin for a while
UNSTEADY = 0.2  # spread of the middle half of the rounds, as a share of the median

_STEPS = {"float": "float", "calibration": "fake quant", "qat": "fake quant"}


@dataclass(frozen=True)
class BenchRow:
    """One file.

    Attributes:
        kind: "PyTorch float", "ONNX int8" and so on.
        preprocess: whether it prepares the images itself.
        score: the metric on the split, in percent; None where it wasn't measured.
        ms: threads -> milliseconds a picture, the median of the rounds.
        spread: threads -> what the middle half of the rounds spans, as a share of the median.
        images_per_s: with the most threads.
        peak_bytes: the most memory of its process, on the fewest threads.
        start_bytes: what its libraries take of that.
    """

    file: Path
    kind: str
    preprocess: bool
    size_bytes: int
    metric: str
    score: float | None
    ms: dict[int, float]
    spread: dict[int, float]
    images_per_s: float
    peak_bytes: int
    start_bytes: int


@dataclass(frozen=True)
class InferBench:
    """Files side by side.

    Attributes:
        shape: (N, C, H, W) of the images that were timed.
        split: that the scores are of.
        images: scored; 0 where there are no scores.
    """

    rows: tuple[BenchRow, ...]
    shape: tuple[int, ...]
    threads: tuple[int, ...]
    split: str
    images: int
    processor: str


def bench_infer(
    files: Sequence[Path],
    *,
    overrides: Sequence[str] = (),
    weights_of: Config | None = None,
    shape: tuple[int, ...] | None = None,
    split: str = "val",
    threads: Sequence[int] = (),
    images: int | None = None,
    rounds: int = ROUNDS,
) -> Job[InferBench]:
    """Time model files on the CPU, in turn, and score them.

    Each file runs in a process of its own. What is timed is the model as it is deployed, with its
    argmax where ``deploy.argmax`` says so, without reading and without the batch transforms
    (unless they are inside an ONNX file).

    Args:
        files: checkpoints of any step and .onnx files; the first is what the others are
            compared with.
        overrides: "key=value" changes of the files' configs, e.g. where the data is.
        weights_of: the first file holds the plain weights of this config's network.
        shape: (N, C, H, W); None for the only one that a file takes, or else what the first one
            is made for.
        split: "train" or "val".
        threads: numbers of threads; none for 1 and one a core.
        images: of the split that are scored; None for all, 0 for no scores.
        rounds: measurements of each file.

    Raises:
        HatError: a file can't be used, or takes another shape.
    """
    torch_device = torch.device("cpu")
    plain = [] if weights_of is None else list(files[:1])
    opened = [
        open_model_file(file, weights_of, device=torch_device, is_weights=True) for file in plain
    ]
    opened += [
        open_model_file(file, None, overrides, device=torch_device) for file in files[len(plain) :]
    ]
    shape = shape or _shape_for(opened)
    counts = tuple(dict.fromkeys(sorted(threads))) or tuple(
        dict.fromkeys((1, max(1, int(usable_cores()))))
    )
    for one in opened:
        _require_shape(one, shape)
    yield Note(f"timing {len(files)} files on images of {_text(shape)}, in turn")
    timings = {}
    for number in counts:
        timings[number] = yield from _time(opened, shape, number, rounds)
    scores: list[tuple[str, float | None, int]] = []
    for one in opened:
        scores.append((yield from _score(one, split, images)))
    rows = tuple(
        _row(one, score, {number: timings[number][place] for number in counts}, shape[0])
        for place, (one, score) in enumerate(zip(opened, scores, strict=True))
    )
    for row in rows:
        worst = max(row.spread.values())
        if worst > UNSTEADY:
            text = f"times of {row.file.name} vary by {100 * worst:.0f} %"
            yield Warned(f"{text}: the machine has other work")
    scored = max((count for _, score, count in scores if score is not None), default=0)
    return InferBench(rows, shape, counts, split, scored, processor())


@dataclass
class _Timing:
    """What one process measured.

    Attributes:
        seconds: of each round, a batch.
    """

    seconds: list[float] = field(default_factory=list)
    start_bytes: int = 0
    peak_bytes: int = 0


def _time(
    opened: Sequence[ModelFile], shape: tuple[int, ...], threads: int, rounds: int
) -> Job[list[_Timing]]:
    """All files in turn, so that what else the machine does hits all of them."""
    activity = f"timing with {threads} thread{'s' if threads > 1 else ''}"
    timings = [_Timing() for _ in opened]
    total = rounds * len(opened)
    with ExitStack() as stack:
        children = []
        yield Progress(activity, 0, total, "rounds")
        for one, timing in zip(opened, timings, strict=True):
            child = stack.enter_context(_Child(one, shape, threads))
            timing.start_bytes = child.start_bytes
            children.append(child)
        for number in range(rounds):
            for child, timing in zip(children, timings, strict=True):
                time.sleep(PAUSE_S)
                timing.seconds.append(child.ask("round")["seconds"])
            yield Progress(activity, (number + 1) * len(opened), total, "rounds")
        for child, timing in zip(children, timings, strict=True):
            timing.peak_bytes = child.ask("end")["peak_bytes"]
    return timings


class _Child:
    """The process of one file.

    Attributes:
        start_bytes: memory of its libraries.

    Raises:
        HatError: it can't run the file.
    """

    def __init__(self, opened: ModelFile, shape: tuple[int, ...], threads: int) -> None:
        self._path = opened.path
        environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "hatcli.recipes.bench.process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        kind = "torch" if opened.onnx is None else "onnx"
        task = {"kind": kind, "file": str(opened.path), "shape": shape, "threads": threads}
        if opened.is_weights:
            task["weights_of"] = {"name": opened.config.name, "values": opened.config.values}
        try:
            self.start_bytes: int = self.ask(json.dumps(task))["start_bytes"]
        except HatError:
            self.__exit__()
            raise

    def ask(self, line: str) -> Mapping[str, Any]:
        """Send a line and wait for the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise HatError(f"{self._path}: the process that times it died: {self._last_words()}")
        document: dict[str, Any] = json.loads(answer)
        if "error" in document:
            raise HatError(str(document["error"]))
        return document

    def __enter__(self) -> "_Child":
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.communicate()

    def _last_words(self) -> str:
        _, errors = self._process.communicate()
        lines = errors.strip().splitlines()
        return lines[-1] if lines else f"exit code {self._process.returncode}"


def _score(opened: ModelFile, split: str, images: int | None) -> Job[tuple[str, float | None, int]]:
    """The name of a file's metric, its value on the split if there is one, and the images."""
    config = opened.config
    if images == 0:
        return "", None, 0
    try:
        dataset = build_dataset(config, split)
    except HatError as error:
        yield Note(f"{opened.path}: no score: {error.message}")
        return "", None, 0
    metric = build_metric(config, dataset)
    chosen = dataset if images is None else EvenSubset(dataset, images)
    found = yield from evaluate(
        opened.model,
        build_loader(config, "val", chosen).epoch(0),
        metric,
        prepare=opened.prepare,
        device=torch.device("cpu"),
        total=len(chosen),
        activity=f"scoring {opened.path.name}",
    )
    return metric.best_by, found[metric.best_by], len(chosen)


def _row(
    opened: ModelFile,
    score: tuple[str, float | None, int],
    timings: Mapping[int, _Timing],
    batch: int,
) -> BenchRow:
    ms = {n: 1000 * statistics.median(one.seconds) / batch for n, one in timings.items()}
    first = timings[min(timings)]
    return BenchRow(
        opened.path,
        _kind(opened),
        opened.onnx is not None and opened.onnx.preprocess,
        opened.path.stat().st_size,
        score[0],
        score[1],
        ms,
        {n: _spread(one.seconds) for n, one in timings.items()},
        1000 / ms[max(ms)],
        first.peak_bytes,
        first.start_bytes,
    )


def _spread(seconds: Sequence[float]) -> float:
    if len(seconds) < 4:
        return 0.0
    low, middle, high = statistics.quantiles(seconds, n=4)
    return (high - low) / middle


def _kind(opened: ModelFile) -> str:
    if opened.onnx is None:
        return f"PyTorch {_STEPS.get(opened.step, opened.step)}"
    if "hat.integer_graph" in opened.onnx.metadata:
        return "ONNX int8"
    return "ONNX float" if opened.step else "ONNX"


def _shape_for(opened: Sequence[ModelFile]) -> tuple[int, ...]:
    """What all files take: the sizes that are fixed, and else those that the first is made for.

    Raises:
        UsageError: they are fixed to different sizes, or the first doesn't say.
    """
    fixed: dict[int, tuple[int, ModelFile]] = {}
    for one in opened:
        for place, size in enumerate(_input_shape(one)):
            first = fixed.setdefault(place, (size, one)) if isinstance(size, int) else None
            if first is not None and first[0] != size:
                raise UsageError(
                    f"{one.path} takes images of {_text(_input_shape(one))} alone, "
                    f"{first[1].path} of {_text(_input_shape(first[1]))}",
                    "export them for one --shape, or with --dynamic size; or time them one by one",
                )
    known = opened[0].config["deploy"].get("shape") or [None] * 4
    sizes = [fixed[place][0] if place in fixed else known[place] for place in range(4)]
    if None in sizes:
        raise UsageError(
            f"{opened[0].path}: doesn't say for which size it is", "give --shape N,C,H,W"
        )
    return tuple(int(size) for size in sizes)


def _input_shape(opened: ModelFile) -> tuple[int | str, ...]:
    """(N, C, H, W) as a file says it, ints where it is fixed; nothing of a checkpoint."""
    return () if opened.onnx is None else opened.onnx.input_shape


def _text(shape: Sequence[int | str]) -> str:
    return "x".join(map(str, shape))


def _require_shape(opened: ModelFile, shape: tuple[int, ...]) -> None:
    """Run an ONNX file once on these images; ask the network of a checkpoint.

    Raises:
        UsageError: it takes others.
    """
    model = opened.onnx
    if model is None:
        divisor = int(getattr(opened.model, "size_divisor", 1))
        if shape[2] % divisor or shape[3] % divisor:
            sides = f"{shape[2]}x{shape[3]}"
            raise UsageError(f"{opened.path}: takes multiples of {divisor}, not {sides}")
        return
    fixed = model.input_shape[0]
    if isinstance(fixed, int) and fixed != shape[0]:
        raise UsageError(f"{opened.path}: takes {fixed} images at a time, not {shape[0]}")
    model(torch.zeros(shape, dtype=model.input_dtype))
