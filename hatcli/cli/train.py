"""hat train: run one step of a config's journey, or all of them."""

import shlex
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from hatcli.cli._options import (
    AsJson,
    ConfigFile,
    Devices,
    RunsDir,
    TargetAndOverrides,
    Weights,
    one_target,
)
from hatcli.cli._processes import from_main, start_for_each, together
from hatcli.config import Config, load_config
from hatcli.errors import UsageError
from hatcli.events import Job, Warned
from hatcli.stopping import stop_signals

if TYPE_CHECKING:
    from hatcli.recipes.training.workbench import StepResult

T = TypeVar("T")

STEPS = ("float", "calibration", "qat", "int_infer", "all")
NEEDED = {"qat": ("calibration", "qat"), "all": STEPS[:-1]}
"""The steps whose configs a step needs, where it isn't its own alone."""

NEXT = {
    "float": ("calibration",),
    "calibration": ("qat", "int_infer"),
    "qat": ("int_infer",),
    "int_infer": (),
}


@dataclass(frozen=True)
class _Request:
    """What was asked for on the command line."""

    step: str
    target: str | None
    overrides: list[str]
    device: str
    out: Path | None
    ckpt: str | None
    weights: Path | None
    resume: bool
    resume_from: Path | None
    allow_change: bool

    @property
    def resumes(self) -> bool:
        """Whether an older run goes on."""
        return self.resume or self.resume_from is not None


def main(
    arguments: TargetAndOverrides = None,
    config: ConfigFile = None,
    step: Annotated[
        str,
        typer.Option(
            "--step", metavar="STEP", help=f"{', '.join(STEPS[:-1])}, or {STEPS[-1]} of them."
        ),
    ] = "float",
    ckpt: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Checkpoint that a step behind float starts from; the newest run's by default.",
            show_default=False,
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Short for epochs=N.")] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", "-b", help="Short for train.batch_size=N.")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Short for optim.lr=X.")] = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", "--num-workers", "-j", help="Reading processes, for both sets."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Short for seed=N.")] = None,
    amp: Annotated[
        bool | None,
        typer.Option("--amp/--no-amp", help="bfloat16 autocast, or float32; float alone has it."),
    ] = None,
    device: Devices = "auto",
    out: RunsDir = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the newest run of this config and step.")
    ] = False,
    resume_from: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Go on with this run folder or last checkpoint."),
    ] = None,
    allow_change: Annotated[
        bool,
        typer.Option(
            "--allow-config-change", help="Let --resume go on with other settings or batches."
        ),
    ] = False,
    weights: Weights = None,
    val_only: Annotated[
        bool, typer.Option("--val-only", help="Don't train; same as hat eval --ckpt.")
    ] = False,
    val_ckpt: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Checkpoint that --val-only scores; the newest best one of the step by default.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train a model in float, calibrate it, train it quantized, run it as integers.

    Each step starts from the newest checkpoint of the step before it, or from
    --ckpt, and says which. Settings such as epochs=2 are those of the step; with
    --step all they are those of the config, and steps.qat.epochs=2 is for qat.
    Checkpoints, logs and curves go to runs/NAME/TIME-STEP/.

    Example: hat train unet --step float optim.lr=0.02 epochs=100

    Example: hat train unet --step qat
    """
    from hatcli.recipes.steps import check_step

    check_step(step)
    start_for_each(device)
    target, overrides = one_target(arguments, config)
    shortcuts = {
        "epochs": epochs,
        "train.batch_size": batch_size,
        "optim.lr": lr,
        "train.num_workers": workers,
        "val.num_workers": workers,
        "seed": seed,
        "fit.precision": None if amp is None else "bf16" if amp else "float32",
    }
    overrides += [f"{key}={value}" for key, value in shortcuts.items() if value is not None]
    if val_only or val_ckpt is not None:
        _validate_only(step, target, overrides, val_ckpt, device, as_json=as_json)
        return
    request = _Request(
        step, target, overrides, device, out, ckpt, weights, resume, resume_from, allow_change
    )
    _check_request(request)
    with together(device):
        results = _resume(request) if request.resumes else _start(request)
    _show(results, request, as_json=as_json)


def _check_request(request: _Request) -> None:
    step, starts_anew = request.step, request.step in ("float", "all")
    if request.weights is not None and request.resumes:
        raise UsageError("--weights starts a run and --resume goes on with one: give one of them")
    if request.ckpt is not None and request.resumes:
        raise UsageError("--ckpt starts a run and --resume goes on with one: give one of them")
    if request.ckpt is not None and request.weights is not None:
        raise UsageError("two files to start from", "give --ckpt or --weights")
    if request.ckpt is not None and starts_anew:
        raise UsageError(
            f"--step {step} starts a new float run, not from a checkpoint",
            "go on with a run: --resume; start from plain weights: --weights FILE",
        )
    if request.weights is not None and not request.weights.is_file():
        raise UsageError(f"weights not found: {request.weights}")
    if request.weights is not None and step == "int_infer":
        raise UsageError(
            "int_infer starts from a calibration or qat checkpoint, not from plain weights",
            "run first: hat train TARGET --step calibration --weights FILE",
        )
    if request.resume and step not in ("float", "qat"):
        raise UsageError(f"--step {step} can't be resumed", "run it again without --resume")
    if request.target is None and request.resume_from is None:
        raise UsageError("which config?", "name one, e.g. unet, or give --config FILE")


def _start(request: _Request) -> "list[StepResult]":
    """A new run, or several."""
    from hatcli.recipes.runs.folder import RUNS
    from hatcli.recipes.steps import find_predecessor

    step, target = request.step, request.target
    assert target is not None
    configs = _configs(request)
    file, found = request.weights, None
    if file is None and step not in ("float", "all"):
        name, root = configs[step].name, request.out or RUNS
        file, found = from_main(
            lambda: find_predecessor(name, step, target=target, ckpt=request.ckpt, root=root)
        )
    from hatcli.cli import _screen
    from hatcli.recipes.training.journey import Journey, take_all_steps, take_step
    from hatcli.recipes.training.train import train_float

    if found:
        _screen.tell(found)
    command = sys.argv[1:]
    journey = Journey(configs, target, request.device, request.out, command)
    if step == "all":
        return _follow(take_all_steps(journey, weights=file))
    if step == "float":
        job = train_float(
            configs[step], device=request.device, out=request.out, weights=file, command=command
        )
        return [_follow(job)]
    assert file is not None
    return _follow(
        take_step(
            journey,
            step,
            file,
            is_weights=request.weights is not None,
            was_looked_for=found is not None and request.ckpt is None,
        )
    )


def _configs(request: _Request) -> dict[str, Config]:
    """The checked config of each step that is needed."""
    from hatcli.recipes.check import check_config
    from hatcli.recipes.steps import config_of_step

    assert request.target is not None
    step, overrides = request.step, request.overrides
    if step in ("float", "all"):  # there is no other step that the settings could be for
        base = load_config(request.target, overrides)
        overrides = []
    else:
        base = load_config(request.target)
    check_config(base)
    configs = {}
    for name in NEEDED.get(step, (step,)):
        configs[name] = config_of_step(base, name, overrides)
        check_config(configs[name])
    return configs


def _resume(request: _Request) -> "list[StepResult]":
    """Go on with a run of float or qat."""
    checkpoint, skipped = from_main(lambda: _checkpoint_to_resume(request))
    from hatcli.recipes.check import check_config
    from hatcli.recipes.training.qat import train_qat
    from hatcli.recipes.training.resume import run_to_resume
    from hatcli.recipes.training.train import Resume, train_float

    config, step, notes = from_main(
        lambda: run_to_resume(checkpoint, request.overrides, allow_change=request.allow_change)
    )
    if request.step not in ("float", step):
        raise UsageError(f"{checkpoint}: is of step {step}, not {request.step}")
    check_config(config)
    resume = Resume(checkpoint, request.allow_change, (*skipped, *notes))
    if step == "qat":
        job = train_qat(config, None, device=request.device, resume=resume)
    else:
        job = train_float(config, device=request.device, resume=resume)
    return [_follow(job)]


def _checkpoint_to_resume(request: _Request) -> tuple[Path, list[Warned]]:
    """The checkpoint to go on from, and what is wrong with newer ones."""
    from hatcli.recipes.check import check_config
    from hatcli.recipes.runs.folder import RUNS, newest_run
    from hatcli.recipes.training.resume import find_in_run

    name = None
    if request.target is not None:
        config = load_config(request.target, request.overrides)
        check_config(config)
        name = config.name
    if request.resume_from is not None:
        path = request.resume_from
        return (path, []) if path.is_file() else find_in_run(path)
    root = request.out or RUNS
    run = newest_run(name, request.step, root)
    if run is None:
        step = "" if request.step == "float" else f"{request.step} "
        raise UsageError(
            f"no {step}run of {name} in {root}/ to go on with",
            "without --resume a new one starts; --resume-from FOLDER names one elsewhere",
        )
    return find_in_run(run)


def _show(results: "list[StepResult]", request: _Request, *, as_json: bool) -> None:
    from hatcli.cli import _screen
    from hatcli.recipes.reporting.page import FILE
    from hatcli.recipes.steps import OF_ALL_STEPS, accuracy_table

    last = results[-1]
    if as_json:
        documents: list[dict[str, Any]] = [{**asdict(one), "unit": "percent"} for one in results]
        _screen.print_json(documents[-1] | ({"runs": documents} if len(documents) > 1 else {}))
    else:
        _screen.print_metrics(last.metrics)
        if len(last.steps) > 1:
            _screen.print_accuracies(*accuracy_table(last.steps, last.best_by))
        _screen.say(f"best checkpoint: {last.best}")
        _screen.say(f"report: {last.run / FILE}")
    kept = [word for word in request.overrides if word.split("=")[0].split(".")[0] in OF_ALL_STEPS]
    target = request.target or last.run.parent.name
    words = [target, *kept, *(["--out", str(request.out)] if request.out else [])]
    steps = [f"hat train {shlex.join(words)} --step {step}" for step in NEXT[last.step]]
    with_best = [["hat", verb, "--ckpt", last.best] for verb in ("eval", "export")]
    _screen.next_command(*steps, *with_best)


def _follow(job: Job[T]) -> T:
    from hatcli.cli import _screen

    with stop_signals():
        return _screen.follow(job)


def _validate_only(
    step: str,
    target: str | None,
    overrides: list[str],
    ckpt: str | None,
    device: str,
    *,
    as_json: bool,
) -> None:
    if ckpt is None and step == "all":
        raise UsageError("--val-only scores one checkpoint", "give --val-ckpt FILE or one --step")
    from hatcli.cli import eval as eval_command
    from hatcli.cli._screen import err

    ckpt = ckpt or f"{step}-checkpoint-best.pth.tar"
    words = [*([target] if target else []), *overrides]
    err.print(f"same as: hat eval {' '.join(words)} --ckpt {ckpt}", markup=False)
    eval_command.run_eval(words, None, ckpt=ckpt, device=device, as_json=as_json)
