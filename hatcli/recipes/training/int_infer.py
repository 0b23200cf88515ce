"""The step int_infer: the model as integers, scored on the real data."""

from contextlib import closing
from pathlib import Path

from torch.fx import GraphModule

from hatcli.config import Config
from hatcli.engine.device import pick_device
from hatcli.events import Job, Warned
from hatcli.quantize.integer_graph import to_data
from hatcli.quantize.lower import lower
from hatcli.recipes.training.predecessor import Predecessor
from hatcli.recipes.training.untrained import finish_untrained
from hatcli.recipes.training.workbench import (
    StepResult,
    announcement,
    new_run,
    open_workbench,
    recorded,
)

STEP = "int_infer"


def infer_integers(
    config: Config,
    before: Predecessor,
    *,
    device: str = "auto",
    out: Path | None = None,
    command: list[str] | None = None,
) -> Job[StepResult]:
    """Turn a quantized model into integers, and score these.

    Args:
        config: complete and checked; of the same model.
        before: a checkpoint of calibration or qat.
        device: "auto", "cpu", "cuda" or "cuda:N".
        out: folder that holds the run folders; "runs" by default.
        command: the words of the command line, for args.txt.

    Raises:
        HatError: a layer has no integer form.
    """
    bench = open_workbench(config, pick_device(device))
    graph = before.model()
    assert isinstance(graph, GraphModule)
    lowered = lower(graph)
    with closing(new_run(config, STEP, out, command)) as run:
        details = ["integers", f"{len(bench.val_set)} images", f"from {before.file}"]
        yield from recorded(run, announcement(bench, STEP, run, details, None))
        yield from recorded(run, [Warned(str(finding)) for finding in lowered.findings])
        metrics = yield from bench.score(lowered.graph.to(bench.device))
        return finish_untrained(
            run,
            STEP,
            config,
            before,
            metrics,
            model={"integer_graph": to_data(lowered.graph.cpu()), "state_dict": {}},
            dataset=bench.val_set,
            findings=lowered.findings,
            best_by=bench.metric.best_by,
            metric=bench.metric,
        )
