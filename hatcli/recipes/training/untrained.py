"""The end of a step that trains nothing: one checkpoint, which is the best and the last."""

from collections.abc import Sequence
from typing import Any

from hatcli.config import Config
from hatcli.data.loader import SampleSource
from hatcli.engine.checkpoint import save_checkpoint
from hatcli.engine.distributed import is_main
from hatcli.events import Note, percents
from hatcli.quantize.findings import Finding
from hatcli.recipes.runs.folder import RunFolder
from hatcli.recipes.training.predecessor import Predecessor
from hatcli.recipes.training.workbench import StepResult, base_content, finish_step


def finish_untrained(
    run: RunFolder,
    step: str,
    config: Config,
    before: Predecessor,
    metrics: dict[str, float],
    *,
    model: dict[str, Any],
    dataset: SampleSource,
    findings: Sequence[Finding],
    best_by: str,
    **summary: Any,
) -> StepResult:
    """Save the checkpoint of such a step, and what `finish_step` writes.

    Args:
        before: the checkpoint that the step started from.
        metrics: of the model that is saved.
        model: the entries of the checkpoint that the model is made of again.
        dataset: whose classes they are.
        summary: further arguments of `finish_step`.
    """
    best = run.checkpoint_path(step, "best")
    content = {
        **base_content(config, step, metrics, dataset),
        "epoch": before.content["epoch"],
        "lineage": before.lineage,
        "findings": [str(finding) for finding in findings],
        **model,
        "ema_state_dict": None,
    }
    if is_main():
        save_checkpoint(best, content)
    run.record(Note(f"at the end: {percents(metrics)}"))
    return finish_step(
        run,
        step,
        best_by,
        metrics,
        (best, best),
        lineage=before.lineage,
        findings=findings,
        **summary,
    )
