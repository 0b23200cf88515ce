"""The steps of the journey: what each starts from, its config, and what became of the accuracy.

float -> calibration -> qat -> int_infer. Nothing here loads torch.
"""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from datetime import datetime
from pathlib import Path
from typing import Any

from hatcli.config import Config, from_values
from hatcli.errors import ConfigError, UsageError, did_you_mean
from hatcli.events import headline
from hatcli.recipes.runs.folder import (
    RUNS,
    STEPS,
    checkpoint_in,
    find_checkpoint,
    newest_run,
    run_time,
)

ALL = "all"
WITH_SETTINGS = ("calibration", "qat")
"""The steps that a config's ``steps`` may have settings for."""

COMES_FROM = {
    "calibration": ("float",),
    "qat": ("calibration", "float"),
    "int_infer": ("qat", "calibration"),
}

SAME_IN_ALL_STEPS = ("task", "model", "batch_transforms", "deploy", "quantize", "steps", "imports")
"""Top-level names that no step may change: they say what model it is."""

OF_ALL_STEPS = ("data_rootdir", "model", "batch_transforms", "val", "deploy", "quantize", "seed")
"""Settings that the next step has to be given too."""

QAT_SHARE = 10  # QAT trains for a tenth of the float epochs ...
QAT_RATE = 0.01  # ... at a hundredth of the float learning rate


def check_step(step: str) -> None:
    """Refuse a step that doesn't exist.

    Raises:
        UsageError: with the nearest name.
    """
    if step not in (*STEPS, ALL):
        raise UsageError(f"step {step!r} unknown", did_you_mean(step, (*STEPS, ALL)))


def config_of_step(config: Config, step: str, overrides: Iterable[str] = ()) -> Config:
    """The config that a step runs by.

    What ``config["steps"][step]`` says is laid over the config (for qat: over `qat_defaults`);
    then the overrides are applied, so that ``epochs=2`` means the epochs of this step.
    ``steps.qat.epochs=2`` does the same. The result says in its ``steps`` what the step changed,
    so that running the step by it again gives the same config.

    Raises:
        ConfigError: the settings of the step can't be laid over the config.
    """
    texts = list(overrides)
    of_steps = [text for text in texts if text.startswith("steps.")]
    base = config.with_overrides(of_steps)
    if step not in WITH_SETTINGS:
        return base.with_overrides(text for text in texts if text not in of_steps)
    changes = base["steps"].get(step, {})
    _require_changeable(step, changes)
    values = deepcopy(dict(base.values))
    defaults = qat_defaults(base) if step == "qat" else {}
    for layer in (defaults, changes):
        values.update({key: _laid_over(values.get(key), new) for key, new in layer.items()})
    merged = from_values(config.name, values, where=f"steps.{step}")
    final = merged.with_overrides(text for text in texts if text not in of_steps)
    changed = {key: final[key] for key in {**defaults, **changes}}
    steps = {**base["steps"], step: changed} if changed else base["steps"]
    return from_values(config.name, {**final.values, "steps": steps})


def qat_defaults(config: Config) -> dict[str, Any]:
    """What QAT changes of a config unless ``steps.qat`` says otherwise.

    A model that works is adjusted to its grid: a tenth of the epochs, a hundredth of the
    learning rate, falling along a cosine, without a warm-up. Validations come as much closer.
    """
    optim = dict(config["optim"])
    if "lr" in optim:
        optim["lr"] *= QAT_RATE
    return {
        "epochs": max(1, config["epochs"] // QAT_SHARE),
        "optim": optim,
        "schedule": {"type": "cosine"},
        "fit": {
            "val_every": max(1, config["fit"].get("val_every", 1) // QAT_SHARE),
            **({"compile": False} if config["fit"].get("compile") else {}),
        },
    }


def find_predecessor(
    name: str, step: str, *, target: str, ckpt: str | None = None, root: Path = RUNS
) -> tuple[Path, str]:
    """The checkpoint that a step starts from, and the line that says which.

    Without ``ckpt`` it is the best one of the newest run (by the time in its name) of the steps
    that this step may follow. So qat takes the newest calibration, unless a float run is newer:
    then that one, which is calibrated first. And int_infer takes the newest of qat and
    calibration.

    Args:
        name: of the config.
        step: "calibration", "qat" or "int_infer".
        target: what the user calls the config, for the hints.
        ckpt: a path; or "best.pth" or "qat-checkpoint-best.pth.tar", which mean that of the
            newest run where no such file exists.
        root: folder that holds the run folders.

    Raises:
        UsageError: there is none; the hint is the command to run first.
    """
    if ckpt is not None:
        file, _ = find_checkpoint(ckpt, name, root)
        if not file.is_file():
            raise UsageError(f"checkpoint not found: {file}", f"runs are in {root}/")
        return file, f"starting from {file}"
    runs = {kind: newest_run(name, kind, root) for kind in COMES_FROM[step]}
    found = {kind: run for kind, run in runs.items() if run is not None}
    if found:
        kind = max(found, key=lambda kind: run_time(found[kind]))
        file = checkpoint_in(found[kind], kind)
        if not file.is_file():
            raise UsageError(
                f"{found[kind]}: the newest {kind} run, has no best checkpoint yet",
                f"go on with it: hat train --resume-from {found[kind]}; or name another by --ckpt",
            )
        return file, f"starting from {file} (the newest {' or '.join(COMES_FROM[step])} run)"
    float_run = newest_run(name, "float", root)
    if float_run is None:
        raise UsageError(
            f"{step}: no float checkpoint of {name} in {root}/",
            f"train one first: hat train {target} --step float",
        )
    raise wrong_step(step, checkpoint_in(float_run, "float"), "float", target)


def wrong_step(step: str, file: Path, its_step: str, target: str) -> UsageError:
    """The error that a step can't start from a checkpoint; its hint is the command to run."""
    wanted = " or ".join(COMES_FROM[step])
    article = "an" if its_step.startswith("i") else "a"
    message = f"{step} starts from a {wanted} checkpoint; {file} is {article} {its_step} one"
    if its_step == "float":
        hint = f"run first: hat train {target} --step calibration --ckpt {file}"
    else:
        hint = f"leave --ckpt out for the newest {wanted} run, or name another file"
    return UsageError(message, hint)


def step_entry(
    step: str, metrics: Mapping[str, float], file: Path, sha256: str | None = None
) -> dict[str, Any]:
    """One line of a checkpoint's lineage, of plain values.

    Args:
        metrics: of which the headline ones are kept.
        file: the step's best checkpoint.
        sha256: first digits of the file's SHA-256; None where the file isn't needed later.
    """
    written = datetime.fromtimestamp(file.stat().st_mtime).isoformat(timespec="seconds")
    return {
        "step": step,
        "metrics": headline(metrics),
        "file": str(file),
        "time": written,
        "sha256": sha256,
    }


def accuracy_table(
    steps: Iterable[Mapping[str, Any]], best_by: str
) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows: each step's headline metrics, and the difference to float.

    Args:
        steps: entries as `step_entry` makes them, in their order.
        best_by: the metric whose difference is shown.
    """
    entries = list(steps)
    names = list(dict.fromkeys(name for entry in entries for name in entry["metrics"]))
    start = next((e["metrics"].get(best_by) for e in entries if e["step"] == "float"), None)
    rows = []
    for entry in entries:
        own = entry["metrics"].get(best_by)
        difference = None if own is None or start is None else own - start
        rows.append([entry["step"], *(entry["metrics"].get(name) for name in names), difference])
    return ["step", *names, f"{best_by} - float"], rows


def _require_changeable(step: str, changes: Any) -> None:
    if not isinstance(changes, Mapping):
        raise ConfigError(f"steps.{step}: must be a dict, got {changes!r}")
    for key in changes:
        if key in SAME_IN_ALL_STEPS:
            raise ConfigError(
                f"steps.{step}: a step can't change {key!r}, which says what model it is"
            )


def _laid_over(old: Any, new: Any) -> Any:
    """A dict changes the entries that it names; a part with a type replaces the old one."""
    if not isinstance(old, Mapping) or not isinstance(new, Mapping) or "type" in new:
        return deepcopy(new)
    return {**old, **{key: _laid_over(old.get(key), value) for key, value in new.items()}}
