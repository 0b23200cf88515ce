"""hat train: run one step of a config's training."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from hatcli.cli._options import (
    AsJson,
    ConfigFile,
    Device,
    TargetAndOverrides,
    Weights,
    one_target,
)
from hatcli.config import Config, load_config
from hatcli.errors import StoppedBySignal, UsageError, did_you_mean

STEPS = ("float", "calibration", "qat", "int_infer")


def main(
    arguments: TargetAndOverrides = None,
    config: ConfigFile = None,
    step: Annotated[
        str, typer.Option("--step", metavar="|".join(STEPS), help="Which step of the journey.")
    ] = "float",
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
        bool | None, typer.Option("--amp/--no-amp", help="bfloat16 autocast, or float32.")
    ] = None,
    device: Device = "auto",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where run folders go: runs.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the newest run of this config.")
    ] = False,
    resume_from: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Go on with this run folder or last checkpoint."),
    ] = None,
    weights: Weights = None,
    val_only: Annotated[
        bool, typer.Option("--val-only", help="Don't train; same as hat eval --ckpt.")
    ] = False,
    val_ckpt: Annotated[
        str | None, typer.Option(metavar="FILE", help="The checkpoint that --val-only scores.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train a model: float now; calibration, qat and int_infer are not built yet.

    Checkpoints, logs and curves go to runs/NAME/TIME-STEP/.

    Example: hat train unet --step float optim.lr=0.02 epochs=100
    """
    _check_step(step)
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
        _validate_only(target, overrides, val_ckpt, device, as_json=as_json)
        return
    _train(
        target,
        overrides,
        device,
        out,
        weights=weights,
        resume=resume,
        resume_from=resume_from,
        as_json=as_json,
    )


def _train(
    target: str | None,
    overrides: list[str],
    device: str,
    out: Path | None,
    *,
    weights: Path | None,
    resume: bool,
    resume_from: Path | None,
    as_json: bool,
) -> None:
    if weights is not None and (resume or resume_from is not None):
        raise UsageError("--weights starts a run and --resume goes on with one: give one of them")
    if weights is not None and not weights.is_file():
        raise UsageError(f"weights not found: {weights}")
    from hatcli.recipes.check import check_config

    chosen: Config | None = None
    if target is not None:
        chosen = load_config(target, overrides)
        check_config(chosen)
    elif resume_from is None:
        raise UsageError("which config?", "name one, e.g. unet, or give --config FILE")
    checkpoint = _checkpoint_to_resume(chosen, out, resume=resume, resume_from=resume_from)

    from hatcli.cli import _screen
    from hatcli.recipes import train

    if checkpoint is not None:
        chosen = train.config_to_resume(checkpoint, overrides)
        check_config(chosen)
    assert chosen is not None
    job = train.train_float(
        chosen,
        device=device,
        out=out,
        weights=weights,
        resume_from=checkpoint,
        command=sys.argv[1:],
    )
    with _stop_by_exception():
        result = _screen.follow(job)
    if as_json:
        _screen.print_json(
            {
                "run": result.run,
                "step": result.step,
                "best": result.best,
                "last": result.last,
                "metrics": result.metrics,
            }
        )
    else:
        _screen.print_metrics(result.metrics)
        _screen.say(f"best checkpoint: {result.best}")
    _screen.next_command(f"hat eval --ckpt {result.best}", f"hat export --ckpt {result.best}")


def _check_step(step: str) -> None:
    if step not in STEPS:
        raise UsageError(f"step {step!r} unknown", did_you_mean(step, STEPS))
    if step != "float":
        raise UsageError(f"step {step} is not built yet", "only --step float is, so far")


def _checkpoint_to_resume(
    config: Config | None, out: Path | None, *, resume: bool, resume_from: Path | None
) -> Path | None:
    from hatcli.recipes.runs import RUNS, newest_run

    if resume_from is not None:
        return resume_from if resume_from.is_file() else _last_in(resume_from)
    if not resume or config is None:
        return None
    run = newest_run(config.name, "float", out or RUNS)
    if run is None:
        raise UsageError(f"no run of {config.name} in {out or RUNS}/ to go on with")
    return _last_in(run)


def _last_in(run: Path) -> Path:
    found = sorted(run.glob("*-checkpoint-last.pth.tar"))
    if not found:
        raise UsageError(f"{run}: no last checkpoint in this folder")
    return found[-1]


def _validate_only(
    target: str | None, overrides: list[str], ckpt: str | None, device: str, *, as_json: bool
) -> None:
    if ckpt is None:
        raise UsageError("--val-only needs a checkpoint", "give --val-ckpt FILE")
    from hatcli.cli import eval as eval_command
    from hatcli.cli._screen import err

    words = [*([target] if target else []), *overrides]
    err.print(f"same as: hat eval {' '.join(words)} --ckpt {ckpt}", markup=False)
    eval_command.run_eval(words, None, ckpt=ckpt, device=device, as_json=as_json)


@contextmanager
def _stop_by_exception() -> Iterator[None]:
    """SIGINT and SIGTERM end the job at once; the last epoch's checkpoint is whole."""

    def stop(number: int, _frame: FrameType | None) -> None:
        # torch's handler raises when the workers end as well. A function takes its place, since
        # Python complains of a pending signal whose handler has become the default.
        signal.signal(signal.SIGCHLD, _do_nothing)
        raise StoppedBySignal(number, f"stopped by {signal.Signals(number).name}")

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _do_nothing(_number: int, _frame: FrameType | None) -> None:
    pass
