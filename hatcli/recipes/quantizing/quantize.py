"""hat quantize: which layers cost the accuracy, what to raise, and a folder that shows why."""

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from hatcli.config import Config, from_values
from hatcli.engine.device import pick_device
from hatcli.events import Job, Note, Warned, headline
from hatcli.quantize.analysis.details import describe_layers
from hatcli.quantize.analysis.raising import How, Raiser
from hatcli.quantize.analysis.sensitivity import LayerDamage, Sensitivity, measure_damage
from hatcli.quantize.bias_correction import correct_biases
from hatcli.quantize.equalize import equalize
from hatcli.quantize.findings import Finding
from hatcli.quantize.lower import lower
from hatcli.quantize.prepare import prepare
from hatcli.quantize.spec import Spec, read_spec
from hatcli.recipes.build import build_loader, build_metric
from hatcli.recipes.exporting.export import ExportResult
from hatcli.recipes.quantizing.files import export_measured, publish
from hatcli.recipes.quantizing.trials import LayerSearch, TrialImages, score_alone
from hatcli.recipes.runs.folder import RunFolder, environment
from hatcli.recipes.training.calibrate import CalibrationBatches, EvenSubset, calibrate_graph
from hatcli.recipes.training.predecessor import Predecessor
from hatcli.recipes.training.untrained import finish_untrained
from hatcli.recipes.training.workbench import (
    Workbench,
    announcement,
    new_run,
    open_training_set,
    open_workbench,
    recorded,
)

VERSION = 1  # of quantize.json
STEP = "calibration"  # what the checkpoint is, so that the other steps can follow it

ANALYSED_PIXELS = 32 * 256 * 256  # of training images that the analysis looks at
FEWEST_ANALYSED = 4
BATCH_PIXELS = 8 * 256 * 256
SCORED_ALONE = 10  # layers
SHOWN = 10  # layers with histograms
SCATTERED = 5
ROUNDS = 4  # of a search whose result falls short on all images


@dataclass(frozen=True)
class QuantizeSettings:
    """What to find out.

    Attributes:
        max_drop: largest loss of the integers to float, in points; None searches nothing.
        how: what the layers that cost too much are raised to.
        images: validation images of each trial of the search.
    """

    max_drop: float | None = None
    how: How = "float"
    images: int = 256


@dataclass(frozen=True)
class QuantizeResult:
    """What was found.

    Attributes:
        document: the content of quantize.json.
        override: what gives the config these exceptions; None where none were added.
        met: whether the integers are within the budget; None where there was none.
        exported: the ONNX file; None where it couldn't be written.
    """

    run: Path
    document: dict[str, Any]
    layers: list[LayerDamage]
    best: Path
    best_by: str
    override: str | None
    met: bool | None
    exported: ExportResult | None


@dataclass
class _Work:
    """All that the parts of one analysis share.

    Attributes:
        graph: calibrated; the raised one once there is one.
        reference: the same before calibration, in float.
    """

    config: Config
    spec: Spec
    before: Predecessor
    bench: Workbench
    source: CalibrationBatches
    graph: GraphModule
    reference: GraphModule
    settings: QuantizeSettings
    steps: list[dict[str, Any]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def loss(self) -> float:
        """What the last step lost to float, in points."""
        best_by = self.bench.metric.best_by
        first, last = self.steps[0]["metrics"], self.steps[-1]["metrics"]
        return float(first[best_by] - last[best_by])

    def batches(self, pixels: int, fewest: int) -> list[Tensor]:
        """Calibration images, in small batches."""
        height, width = self.source.kept[0].shape[2:]
        count = max(fewest, pixels // (height * width))
        size = max(1, BATCH_PIXELS // (height * width))
        found = [part for batch in self.source.kept for part in torch.split(batch, size)]
        chosen: list[Tensor] = []
        for part in found:
            if count > 0:
                chosen.append(part[:count])
                count -= len(chosen[-1])
        return chosen


def quantize_model(
    config: Config,
    before: Predecessor,
    settings: QuantizeSettings,
    *,
    device: str = "auto",
    out: Path | None = None,
    command: list[str] | None = None,
) -> Job[QuantizeResult]:
    """Calibrate a float model, find the layers that hurt, and raise the fewest that are needed.

    The run folder gets quantize.json, report.html, override.txt where layers were raised, a
    checkpoint of calibration, and its ONNX file.

    Args:
        config: complete and checked; of the same model.
        before: a float checkpoint, or plain weights.
        device: "auto", "cpu", "cuda" or "cuda:N".
        out: folder that holds the run folders; "runs" by default.
        command: the words of the command line, for args.txt.

    Raises:
        HatError: the model can't be traced, quantized or lowered, or an image makes it fail.
    """
    place, started = pick_device(device), time.perf_counter()
    spec = read_spec(config["quantize"])
    train_set, bench = open_training_set(config), open_workbench(config, place)
    images = EvenSubset(train_set, spec.images)
    source = CalibrationBatches(build_loader(config, "val", images), bench.prepare, place)
    graph = prepare(before.model(), spec).to(place)
    work = _Work(config, spec, before, bench, source, graph, graph, settings)
    with closing(new_run(config, "quantize", out, command)) as run:
        details = ["float32", f"{len(images)} of {len(train_set)} training images"]
        yield from recorded(run, announcement(bench, "quantize", run, details, train_set))
        yield from _score_steps(work, run)
        sensitivity = yield from _analyse(work)
        search = None
        if settings.max_drop is not None:
            search = yield from _search(work, sensitivity, run)
        override = _override(work, search)
        if override is not None:
            (run.path / "override.txt").write_text(override + "\n", encoding="utf-8")
        best = _save(work, run)
        document = _document(work, sensitivity, search, override)
        document["seconds"] = time.perf_counter() - started
        publish(run, document)
        image = work.batches(1, 1)[0][:1]
        exported = yield from export_measured(best, work.config, image, run, document)
        document["seconds"] = time.perf_counter() - started
        publish(run, document)
        met = None if search is None else bool(search["met"])
        return QuantizeResult(
            run.path,
            document,
            sensitivity.layers,
            best,
            bench.metric.best_by,
            override,
            met,
            exported,
        )


def _score_steps(work: _Work, run: RunFolder) -> Job[None]:
    """Calibrate, and score float, the graph that fake-quantizes, and the integers."""
    bench, spec = work.bench, work.spec
    if spec.equalize:  # first of all, so that both graphs have the same ranges
        work.findings += yield from equalize(work.graph, work.source, total=work.source.images)
    work.reference = deepcopy(work.graph)
    metrics = yield from bench.score(work.reference)
    _add_step(work, "float", metrics)
    work.before.lineage[0]["metrics"] = headline(metrics)
    spec = replace(spec, equalize=False)
    work.findings += yield from calibrate_graph(work.graph, work.source, spec)
    yield from recorded(run, [Warned(str(finding)) for finding in work.findings])
    _add_step(work, "calibration", (yield from bench.score(work.graph)))
    yield from _score_integers(work, "int_infer", run)


def _score_integers(work: _Work, step: str, run: RunFolder) -> Job[None]:
    lowered = lower(work.graph)
    new = [finding for finding in lowered.findings if finding not in work.findings]
    work.findings += new
    yield from recorded(run, [Warned(str(finding)) for finding in new])
    _add_step(work, step, (yield from work.bench.score(lowered.graph.to(work.bench.device))))


def _add_step(work: _Work, step: str, metrics: Mapping[str, float]) -> None:
    work.steps.append({"step": step, "metrics": dict(metrics)})


def _analyse(work: _Work) -> Job[Sensitivity]:
    """The layers by damage, the worst with the metric when they alone are quantized."""
    batches = work.batches(ANALYSED_PIXELS, FEWEST_ANALYSED)
    found = yield from measure_damage(
        work.graph, work.reference, batches, bias_correction=work.spec.bias_correction
    )
    worst = [layer for layer in found.layers if not layer.is_float][:SCORED_ALONE]
    images = TrialImages(work.bench, min(work.settings.images, 100))
    drops = yield from score_alone(
        found, images, worst, lambda: build_metric(work.config, work.bench.val_set)
    )
    exact = work.steps[0]["metrics"][work.bench.metric.best_by]
    layers = [
        replace(layer, alone_metric=exact - drops[layer.name]) if layer.name in drops else layer
        for layer in found.layers
    ]
    return replace(found, layers=layers)


def _search(work: _Work, sensitivity: Sensitivity, run: RunFolder) -> Job[dict[str, Any]]:
    """Raise layers until the integers are within the budget on all validation images."""
    settings, bench = work.settings, work.bench
    assert settings.max_drop is not None
    started, budget, rounds = time.perf_counter(), settings.max_drop, 0
    raised: tuple[str, ...] = ()
    exceptions: list[dict[str, Any]] = []
    search = None
    if work.loss() > settings.max_drop:
        search = yield from _open_search(work, sensitivity)
    while search is not None and work.loss() > settings.max_drop and rounds < ROUNDS:
        rounds += 1
        trial = yield from search.find(budget)
        raised, exceptions = trial.layers, search.exceptions(trial.layers)
        work.graph = search.raiser.build(exceptions)
        if search.correction:
            yield from correct_biases(work.graph, work.source.kept)
        work.steps = [step for step in work.steps if step["step"] != "int_infer raised"]
        yield from _score_integers(work, "int_infer raised", run)
        shortfall = work.loss() - settings.max_drop
        text = f"{len(raised)} raised: {bench.metric.best_by} {-work.loss():+.2f} as integers"
        yield Note(text)
        if shortfall > 0 and (trial.drop > budget or len(raised) == len(search.search.order)):
            break  # no set does on the trial images either
        budget = min(budget, trial.drop) - max(shortfall, 1e-9)
    return {
        "max_drop": settings.max_drop,
        "how": settings.how,
        "met": work.loss() <= settings.max_drop,
        "drop": work.loss(),
        "metric": work.steps[-1]["metrics"][bench.metric.best_by],
        "raised": exceptions,
        "images": 0 if search is None else search.images.total,
        "tried": 0 if search is None else len(search.search.trials),
        "trials": [] if search is None else [asdict(trial) for trial in search.search.trials],
        "rounds": rounds,
        "seconds": time.perf_counter() - started,
    }


def _open_search(work: _Work, sensitivity: Sensitivity) -> Job[LayerSearch]:
    images = TrialImages(work.bench, work.settings.images)
    yield from images.score_float(work.reference)
    batches = work.batches(ANALYSED_PIXELS, FEWEST_ANALYSED)
    ranges = {name: (one.low, one.high) for name, one in sensitivity.statistics.items()}
    raiser = Raiser(
        work.before.model().to(work.bench.device),
        work.spec,
        work.graph,
        work.reference,
        ranges,
        batches,
    )
    correction = batches if raiser.drops_corrections else []
    return LayerSearch(raiser, images, sensitivity.layers, work.settings.how, correction)


def _override(work: _Work, search: Mapping[str, Any] | None) -> str | None:
    """The word of a command line that gives a config the exceptions."""
    if search is None or not search["raised"]:
        return None
    exceptions = [*map(dict, work.spec.exceptions), *search["raised"]]
    work.config = _with_exceptions(work.config, exceptions)
    text = repr(exceptions)  # in double quotes where it can be, which shells leave alone
    return "quantize.exceptions=" + (text if '"' in text else text.replace("'", '"'))


def _with_exceptions(config: Config, exceptions: Sequence[Mapping[str, Any]]) -> Config:
    quantize = {**config["quantize"], "exceptions": [dict(one) for one in exceptions]}
    return from_values(config.name, {**config.values, "quantize": quantize})


def _save(work: _Work, run: RunFolder) -> Path:
    """The checkpoint, as the step calibration leaves it, with summary.json."""
    if work.settings.max_drop is not None:
        run.describe(work.config, _command(run), environment())
    scored = [step for step in work.steps if step["step"] != "int_infer"]
    result = finish_untrained(
        run,
        STEP,
        work.config,
        work.before,
        scored[-1]["metrics"],
        model={"batch_norm": "folded", "state_dict": work.graph.state_dict()},
        dataset=work.bench.val_set,
        findings=work.findings,
        best_by=work.bench.metric.best_by,
        more={"quantize": "quantize.json"},
        has_page=False,  # report.html is about the quantization
    )
    return result.best


def _command(run: RunFolder) -> list[str]:
    return [(run.path / "args.txt").read_text(encoding="utf-8").rstrip("\n")]


def _document(
    work: _Work,
    sensitivity: Sensitivity,
    search: Mapping[str, Any] | None,
    override: str | None,
) -> dict[str, Any]:
    """What quantize.json holds; see docs/guide/quantization.md for its parts."""
    # The layers as they were found: a raised graph would show the cure in place of the ailment.
    graph = sensitivity.alone.graph
    names = [layer.name for layer in sensitivity.layers if not layer.is_float][:SHOWN]
    batch = work.batches(BATCH_PIXELS, 1)[0]
    details = describe_layers(graph, work.reference, names, batch)
    layers = []
    for layer in sensitivity.layers:
        more = {k: v for k, v in details.get(layer.name, {}).items() if k != "scatter"}
        layers.append({**asdict(layer), **more})
    return {
        "version": VERSION,
        "config": work.config.name,
        "target": work.spec.target,
        "quantize": dict(work.config["quantize"]),
        "checkpoint": str(work.before.file),
        "best_by": work.bench.metric.best_by,
        "images": len(work.bench.val_set),
        "steps": [{**step, "metrics": headline(step["metrics"])} for step in work.steps],
        "findings": [asdict(finding) for finding in work.findings],
        "layers": layers,
        "scatter": {name: details[name]["scatter"] for name in names[:SCATTERED]},
        "search": search,
        "override": override,
        "fusion": None,
        "parity": None,
        "latency": None,
        "environment": environment(),
    }
