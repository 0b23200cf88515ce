"""Run folders: runs/unet/2026-11-21_153012-float/ and what stands in them."""

import csv
import fcntl
import json
import math
import os
import platform
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from hatcli import __version__
from hatcli.config import Config, show_config
from hatcli.errors import HatError, LockedError, UsageError
from hatcli.events import EpochDone, Event, Progress
from hatcli.recipes.runs.tensorboard import Board

RUNS = Path("runs")
STEPS = ("float", "calibration", "qat", "int_infer")
ONE_CHECKPOINT = ("calibration", "int_infer")  # these train nothing: their best is their last
SUFFIX = ".pth.tar"


class RunFolder:
    """An open run folder: one process at a time writes to it.

    Args:
        path: the folder; it exists.

    Raises:
        LockedError: another process has it open.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = _lock(path / ".lock")
        for rest in path.glob(".*.tmp-*"):  # of a process that was killed: nobody else writes here
            rest.unlink()
        self._log: TextIO = (path / "train.log").open("a", encoding="utf-8")
        self._board = Board(path / "tensorboard")

    @classmethod
    def create(cls, config: Config, step: str, root: Path | None = None) -> "RunFolder":
        """A new folder, named by the config, the time and the step; "-2" if that is taken."""
        stamp = datetime.now().strftime("%Y-%m-%d_%H%M%S")
        parent = (root or RUNS) / config.name
        for number in range(1, 1000):
            name = f"{stamp}-{step}" + (f"-{number}" if number > 1 else "")
            try:
                (parent / name).mkdir(parents=True)
            except FileExistsError:
                continue
            except OSError as error:
                raise HatError(f"{parent}: cannot make a run folder: {error.strerror}") from error
            return cls(parent / name)
        raise HatError(f"{parent}: too many runs of this second")

    def describe(self, config: Config, command: Iterable[str], environment: dict[str, Any]) -> None:
        """Write config.py, args.txt and env.json."""
        with _explained(self.path):
            (self.path / "config.py").write_text(show_config(config), encoding="utf-8")
            (self.path / "args.txt").write_text(" ".join(command) + "\n", encoding="utf-8")
            write_json(self.path / "env.json", environment)

    def checkpoint_path(self, step: str, which: str) -> Path:
        """Path of the "best" or "last" checkpoint of a step."""
        return checkpoint_in(self.path, step, which)

    def record_start(self, metrics: Mapping[str, float]) -> None:
        """Add what a training starts with as epoch 0 to metrics.jsonl and results.csv."""
        with _explained(self.path):
            self._append({"epoch": 0, **_validation_columns(metrics)})

    def record(self, event: Event) -> None:
        """Add an event to train.log, and an epoch to metrics.jsonl and results.csv."""
        if isinstance(event, Progress):
            return
        with _explained(self.path):
            if isinstance(event, EpochDone):
                self._record_epoch(event)
            self._log.write(f"{datetime.now():%Y-%m-%d %H:%M:%S}  {event}\n")
            self._log.flush()
            self._board.record(event)

    def forget_after(self, epoch: int) -> None:
        """Drop the epochs that a resumed run will do again from metrics.jsonl and results.csv."""
        rows = [row for row in read_metrics(self.path) if row["epoch"] <= epoch]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (self.path / "metrics.jsonl").write_text(lines, encoding="utf-8")
        write_table(self.path)

    def close(self) -> None:
        """Let others write here."""
        with ExitStack() as stack:  # all are closed, whichever of them fails
            stack.enter_context(_explained(self.path))
            for one in (self._lock, self._board, self._log):
                stack.callback(one.close)

    def _record_epoch(self, event: EpochDone) -> None:
        row = {
            "epoch": event.epoch,
            **{f"train/{name}": value for name, value in event.train.items()},
            **_validation_columns(event.val),
            "lr": event.lr,
            "images_per_s": round(event.images_per_s, 3),
            "seconds": round(event.seconds, 3),
        }
        self._append(row)

    def _append(self, row: Mapping[str, Any]) -> None:
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        write_table(self.path)


class WatchedRun(RunFolder):
    """A run folder that another process writes to: nothing done here leaves a trace.

    Args:
        path: the folder, which needn't exist on this machine.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def describe(self, config: Config, command: Iterable[str], environment: dict[str, Any]) -> None:
        """Nothing."""

    def record_start(self, metrics: Mapping[str, float]) -> None:
        """Nothing."""

    def record(self, event: Event) -> None:
        """Nothing."""

    def forget_after(self, epoch: int) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The epochs of a run from metrics.jsonl; a last line that a kill cut short is left out."""
    path = run / "metrics.jsonl"
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def write_table(run: Path) -> None:
    """Write results.csv anew from metrics.jsonl: which columns there are shows only in time."""
    rows = read_metrics(run)
    columns = dict.fromkeys(column for row in rows for column in row)
    with (run / "results.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(columns))
        writer.writeheader()
        writer.writerows(rows)


def newest_run(name: str | None = None, step: str | None = None, root: Path = RUNS) -> Path | None:
    """The newest run folder, by the time in its name, that holds a checkpoint (of ``step``)."""
    pattern = f"{step or '*'}-checkpoint-*{SUFFIX}"
    runs = [
        run
        for parent in sorted(root.glob(name or "*"))
        for run in parent.glob("*")
        if any(run.glob(pattern))
    ]
    return max(runs, key=run_time, default=None)


def run_time(run: Path) -> tuple[str, int]:
    """When a run was started, to compare with others: by its name; its config's within a second."""
    config = run / "config.py"
    return run.name[:17], (config if config.exists() else run).stat().st_mtime_ns


def checkpoint_in(run: Path, step: str, which: str = "best") -> Path:
    """Path of the "best" or "last" checkpoint of a step in a run folder."""
    return run / f"{step}-checkpoint-{which}{SUFFIX}"


def find_checkpoint(
    text: str, name: str | None = None, root: Path = RUNS
) -> tuple[Path, str | None]:
    """The checkpoint that --ckpt means.

    Args:
        text: a path; or best.pth, last.pth or float-checkpoint-best.pth.tar, which mean that of
            the newest run when no such file exists.
        name: only runs of this config.
        root: folder that holds the run folders.

    Returns:
        The path, and the line that says which run it is from, if it had to be looked for.

    Raises:
        UsageError: nothing is found.
    """
    path = Path(text)
    if path.exists() or path.parent != Path():
        return path, None
    stem = path.name.removesuffix(".tar").removesuffix(".pth")
    which = stem.rpartition("-")[2]
    step = stem.removesuffix(which).removesuffix("-checkpoint-") or None
    if which not in ("best", "last") or (step is not None and step not in STEPS):
        return path, None
    run = newest_run(name, step, root)
    if run is None:
        of = f" of {name}" if name else ""
        raise UsageError(
            f"no {path.name} here, and no run{of} in {root}/ has one",
            f"train one: hat train {name or 'unet'} --step {step or 'float'}",
        )
    found = max(run.glob(f"{step or '*'}-checkpoint-{which}{SUFFIX}"), default=None, key=_age)
    if found is None and which == "last":  # calibration and int_infer have one checkpoint only
        found = next((f for s in ONE_CHECKPOINT if (f := checkpoint_in(run, s)).exists()), None)
    if found is None:
        raise UsageError(f"{run}: has no {which} checkpoint")
    return found, f"checkpoint: {found} (of the newest run)"


def environment() -> dict[str, Any]:
    """What a reader of the figures has to know of the machine."""
    torch = sys.modules.get("torch")
    return {
        "hat": __version__,
        "python": platform.python_version(),
        "torch": getattr(torch, "__version__", None),
        "threads": torch.get_num_threads() if torch else None,
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "host": socket.gethostname(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """A JSON file; NaN, which JSON has not, becomes null."""
    path.write_text(json.dumps(_json_value(document), indent=2) + "\n", encoding="utf-8")


@contextmanager
def _explained(run: Path) -> Iterator[None]:
    """Tell of a run folder that can't be written.

    Raises:
        HatError: it is gone, or its disk is full.
    """
    try:
        yield
    except OSError as error:
        if not run.is_dir():
            raise HatError(f"{run}: the run folder is gone while the run writes to it") from error
        raise HatError(
            f"{run}: cannot write to it: {error.strerror or error}",
            f"free some space; go on with: hat train --resume-from {run}",
        ) from error


def _validation_columns(metrics: Mapping[str, float]) -> dict[str, Any]:
    return {f"val/{name}": _json_number(value) for name, value in metrics.items()}


def _json_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    return _json_number(value)


def _json_number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _age(path: Path) -> int:
    return path.stat().st_mtime_ns


def _lock(path: Path) -> TextIO:
    """Lock a file, by lockf: a flock would live on in forked workers after we are killed."""
    file = path.open("a+", encoding="utf-8")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        owner = file.read().strip() or "another process"
        file.close()
        raise LockedError(f"{path.parent}: {owner} is writing to this run") from error
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return file
