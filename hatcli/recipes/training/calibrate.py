"""The step calibration: the float model with quantizers whose ranges fit the training images."""

import math
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from hatcli.config import Config
from hatcli.data.loader import Loader, Sample, SampleSource
from hatcli.engine.device import pick_device
from hatcli.engine.distributed import from_main, is_main
from hatcli.events import Job, Note, Warned, headline
from hatcli.quantize.adaround import round_weights
from hatcli.quantize.bias_correction import correct_biases
from hatcli.quantize.calibrate import calibrate
from hatcli.quantize.equalize import equalize
from hatcli.quantize.findings import Finding
from hatcli.quantize.prepare import prepare
from hatcli.quantize.quantizers import set_mode
from hatcli.quantize.spec import Spec, read_spec
from hatcli.recipes.build import build_loader
from hatcli.recipes.training.predecessor import Predecessor
from hatcli.recipes.training.untrained import finish_untrained
from hatcli.recipes.training.workbench import (
    StepResult,
    announcement,
    new_run,
    open_training_set,
    open_workbench,
    recorded,
)

STEP = "calibration"
KEPT_BYTES = 1 << 30  # of images that stay in memory for the bias correction
GOLDEN = (math.sqrt(5) - 1) / 2


def calibrate_float(
    config: Config,
    before: Predecessor,
    *,
    device: str = "auto",
    out: Path | None = None,
    command: list[str] | None = None,
) -> Job[StepResult]:
    """Prepare a float model, find its ranges, correct its biases, and score it.

    The images are training images without augmentation: they lie evenly over the training set
    and go through the transforms of validation.

    Args:
        config: complete and checked; of the same model.
        before: a float checkpoint.
        device: "auto", "cpu", "cuda" or "cuda:N".
        out: folder that holds the run folders; "runs" by default.
        command: the words of the command line, for args.txt.

    Raises:
        HatError: the model can't be traced or quantized, or an image makes it fail.
    """
    place = pick_device(device)
    spec = read_spec(config["quantize"])
    train_set = open_training_set(config)
    bench = open_workbench(config, place)
    images = EvenSubset(train_set, spec.images)
    loader = build_loader(config, "val", images, is_shared=False)
    source = CalibrationBatches(loader, bench.prepare, place)
    graph = prepare(before.model(), spec).to(place)
    with closing(new_run(config, STEP, out, command)) as run:
        details = ["float32", f"{len(images)} of {len(train_set)} training images"]
        yield from recorded(run, announcement(bench, STEP, run, details, train_set))
        yield from recorded(run, _shortage(spec, images))
        findings = yield from _calibrate_in_main(graph, source, spec)
        yield from recorded(run, [Warned(str(finding)) for finding in findings])
        if not before.lineage[0]["metrics"]:  # plain weights: nobody has scored them yet
            score = yield from bench.score(before.model().to(place))
            before.lineage[0]["metrics"] = headline(score)
        metrics = yield from bench.score(graph)
        return finish_untrained(
            run,
            STEP,
            config,
            before,
            metrics,
            model={"batch_norm": "folded", "state_dict": graph.state_dict()},
            dataset=train_set,
            findings=findings,
            best_by=bench.metric.best_by,
            metric=bench.metric,
        )


class EvenSubset:
    """Samples that lie evenly over a dataset, in an order of which any beginning does as well.

    Of n samples the i-th in the dataset's order is i * len // n; they are visited in steps of
    about 0.618 n around the circle, so that one batch holds images of all of it.
    """

    def __init__(self, dataset: SampleSource, count: int) -> None:
        self.dataset = dataset
        count = min(count, len(dataset))
        step = next(s for s in range(round(count * GOLDEN), count + 1) if math.gcd(s, count) == 1)
        visits = [visit * step % count for visit in range(count)]
        self.indices = [visit * len(dataset) // count for visit in visits]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        return self.dataset[self.indices[index]]

    def close(self) -> None:
        """Let workers open the dataset for themselves."""
        close = getattr(self.dataset, "close", None)
        if close is not None:
            close()


class CalibrationBatches:
    """The model's inputs, float32 (N, 3, H, W) on its device, read as they are asked for.

    Attributes:
        kept: after a pass some of them, evenly chosen, that take `KEPT_BYTES` together.
    """

    def __init__(self, loader: Loader, prepare_images: nn.Module, device: torch.device) -> None:
        self.images = len(loader.dataset)
        self.kept: list[Tensor] = []
        self._loader = loader
        self._prepare = prepare_images
        self._device = device

    def __iter__(self) -> Iterator[Tensor]:
        self.kept = []
        total = len(self._loader)
        chosen: set[int] = set()
        for position, (images, _, _) in enumerate(self._loader.epoch(0)):
            with torch.no_grad():
                batch = self._prepare(images.to(self._device))
            if position == 0:
                count = min(total, max(1, KEPT_BYTES // (batch.numel() * batch.element_size())))
                chosen = {number * total // count for number in range(count)}
            if position in chosen:
                self.kept.append(batch)
            yield batch


def _shortage(spec: Spec, images: EvenSubset) -> list[Note]:
    if len(images) == spec.images:
        return []
    return [Note(f"quantize.images is {spec.images}: the training set has {len(images)}")]


def _calibrate_in_main(
    graph: GraphModule, source: CalibrationBatches, spec: Spec
) -> Job[list[Finding]]:
    """Calibrate in the main process and give the others its result, to the last bit.

    Put together from parts, histograms, moving averages and mean errors would not be what one
    process finds.
    """
    findings: list[Finding] = []
    if is_main():
        findings = yield from calibrate_graph(graph, source, spec)
    findings, state = from_main(
        lambda: (findings, {name: tensor.cpu() for name, tensor in graph.state_dict().items()})
    )
    if not is_main():
        graph.load_state_dict(state)
        set_mode(graph, "quantize")
    return findings


def calibrate_graph(
    graph: GraphModule, source: CalibrationBatches, spec: Spec
) -> Job[list[Finding]]:
    """Let a prepared graph quantize as a spec says; in place."""
    findings: list[Finding] = []
    if spec.equalize:
        findings += yield from equalize(graph, source, total=source.images)
    findings += yield from calibrate(graph, source, total=source.images)
    if spec.adaround is not None:  # compares with the float weights, as the correction does
        findings += yield from round_weights(
            graph, source.kept, spec.adaround, correct=spec.bias_correction
        )
    elif spec.bias_correction:
        findings += yield from correct_biases(graph, source.kept)
    return findings
