"""What a run folder holds, as the page report.html: cheap enough for the end of each step."""

import contextlib
import json
import os
import shlex
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from hatcli.errors import UsageError
from hatcli.events import headline
from hatcli.recipes.runs.confusion import load_confusion
from hatcli.recipes.runs.folder import RUNS, STEPS, checkpoint_in, read_metrics, run_time
from hatcli.recipes.steps import COMES_FROM, OF_ALL_STEPS
from hatcli.report.run import TRAINED, write_run_report

FILE = "report.html"
QUANTIZE = "quantize.json"

_MOST_REMARKS = 30
_STAMP = "%Y-%m-%d %H:%M:%S"
_NO_PICTURES = "best and worst pictures, exported files"


def write_run_page(run: Path) -> Path:
    """Write report.html of a run whose step is over, from what lies in its folder."""
    document = describe_run(run)
    document["missing"][_NO_PICTURES] = f"hat report {run}"
    path = run / FILE
    write_run_report(path, document)
    return path


def describe_run(run: Path) -> dict[str, Any]:
    """All of the page but what needs the data or an ONNX file.

    A run that was stopped has no summary yet: then it is told how far it came.

    Raises:
        UsageError: it is no run folder.
    """
    summary, log = _read_json(run / "summary.json"), _log_lines(run)
    step = summary.get("step") or _step_by_name(run)
    if step is None or not (run / "config.py").exists():
        raise UsageError(f"{run}: is no run folder", "they are in runs/NAME/")
    history = read_metrics(run)
    own = _own_result(run, step, summary, history)
    document: dict[str, Any] = {
        "name": run.parent.name,
        "step": step,
        "folder": str(run),
        **own,
        **_times(history, log),
        "about": next((text for _, text in log if f" · step {step} · " in text), None),
        "history": history,
        "confusion": load_confusion(run),
        "steps": _steps(run, step, own, summary),
        "remarks": _remarks(log, summary),
        "environment": _read_json(run / "env.json"),
        "config": _read(run / "config.py"),
        "commands": _commands(run, step),
        "missing": {},
    }
    document["quantization"] = _quantization(run, document["steps"])
    if not summary:
        document["missing"]["the end of the run"] = f"hat train --resume-from {run}"
    return document


def best_checkpoint(run: Path, step: str) -> Path | None:
    """The best checkpoint of a run, or else its last one."""
    paths = (checkpoint_in(run, step, which) for which in ("best", "last"))
    return next((path for path in paths if path.exists()), None)


def _own_result(
    run: Path, step: str, summary: dict[str, Any], history: list[dict[str, Any]]
) -> dict[str, Any]:
    """The metrics of the best epoch."""
    result = {
        "best_by": summary.get("best_by"),
        "metrics": summary.get("metrics") or {},
        "best_epoch": summary.get("best_epoch"),
        "epochs": summary.get("epochs"),
    }
    if summary or step not in TRAINED:
        return result
    result["epochs"] = max((row["epoch"] for row in history), default=0)
    result["planned"] = _planned_epochs(run)
    scored = [row for row in history if any(key.startswith("val/") for key in row)]
    if scored:
        first = next(key for key in scored[0] if key.startswith("val/"))
        best = max(scored, key=lambda row: -1.0 if row.get(first) is None else row[first])
        result["best_by"] = first.removeprefix("val/")
        result["best_epoch"] = best["epoch"]
        result["metrics"] = {
            key.removeprefix("val/"): value for key, value in best.items() if key.startswith("val/")
        }
    return result


def _planned_epochs(run: Path) -> int | None:
    for line in _read(run / "config.py").splitlines():
        name, is_there, value = line.partition(" = ")
        if name == "epochs" and is_there and value.isdigit():
            return int(value)
    return None


def _times(history: list[dict[str, Any]], log: list[tuple[datetime, str]]) -> dict[str, Any]:
    """When it began and ended; a resumed training took what its epochs took, not the pause."""
    if not log:
        return {}
    first, last = log[0][0], log[-1][0]
    trained = sum(row.get("seconds") or 0.0 for row in history)
    return {
        "started": first.strftime(_STAMP[:-3]),
        "ended": last.strftime(_STAMP[:-3]),
        "seconds": trained or (last - first).total_seconds(),
    }


def _steps(
    run: Path, step: str, own: dict[str, Any], summary: dict[str, Any]
) -> list[dict[str, Any]]:
    """The steps before this one, this one, and those that others went on with from it."""
    best = summary.get("checkpoints", {}).get("best", checkpoint_in(run, step).name)
    entry = {"step": step, "metrics": headline(own["metrics"]), "file": str(run / best)}
    entries = [*summary.get("steps", [entry])[:-1], entry] if summary.get("steps") else [entry]
    summaries = run.parent.glob("*/summary.json")
    for sibling in sorted(summaries, key=lambda path: run_time(path.parent)):
        others = _read_json(sibling)
        if sibling.parent == run or others.get("quantize"):
            continue
        chain = others.get("steps") or []
        if run.name in [Path(one["file"]).parent.name for one in chain]:
            entries += chain
    kept = {(Path(one["file"]).parent.name, one["step"]): one for one in reversed(entries)}
    return [
        {**one, "own": folder == run.name}
        for (folder, _), one in sorted(kept.items(), key=lambda item: _order(item[1]))
    ]


def _order(entry: dict[str, Any]) -> tuple[str, int]:
    """By the time in the name of its run; of plain weights, which have none, first."""
    folder = Path(entry["file"]).parent.name
    return folder[:17] if folder[:4].isdigit() else "", STEPS.index(entry["step"])


def _remarks(log: list[tuple[datetime, str]], summary: dict[str, Any]) -> list[str]:
    """Warnings and notes of single layers, each once."""
    warnings = [text.removeprefix("warning: ") for _, text in log if text.startswith("warning: ")]
    lines = list(dict.fromkeys([*warnings, *summary.get("findings", [])]))
    rest = len(lines) - _MOST_REMARKS
    return lines[:_MOST_REMARKS] + ([f"and {rest} more in train.log"] if rest > 0 else [])


def _quantization(run: Path, steps: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The newest run of hat quantize that started from the same float checkpoint."""
    start = next((Path(s["file"]).parent.name for s in steps if s["step"] == "float"), None)
    found = []
    for path in run.parent.glob(f"*/{QUANTIZE}"):
        document = _read_json(path)
        if start is not None and Path(str(document.get("checkpoint"))).parent.name == start:
            found.append((run_time(path.parent), path.parent, document))
    if not found:
        return None
    _, folder, document = max(found, key=lambda one: one[0])
    page = folder / FILE
    return {
        "folder": str(folder),
        "link": os.path.relpath(page, run) if page.exists() else None,
        **{key: document.get(key) for key in ("best_by", "steps", "layers")},
    }


def _commands(run: Path, step: str) -> dict[str, list[str]]:
    """What made this run, and what can be done with it."""
    made = _read(run / "args.txt").strip()
    commands = {"This run was made by": [made]} if made else {}
    best = best_checkpoint(run, step)
    if best is None:
        return commands
    file = shlex.quote(str(best))
    commands["Score it, export it, look at its predictions"] = [
        f"hat eval --ckpt {file}",
        f"hat export --ckpt {file}",
        f"hat predict --ckpt {file} PICTURES",
    ]
    following = [after for after, before in COMES_FROM.items() if step in before]
    words = _target_words(run, made)
    lines = [f"hat train {words} --step {after} --ckpt {file}" for after in following]
    if step == "float":
        lines.append(f"hat quantize {words} --ckpt {file}")
    if step in TRAINED:
        lines.append(f"hat train --resume-from {shlex.quote(str(run))}")
    if lines:
        commands["Go on"] = lines
    commands["Draw this page anew, with pictures"] = [f"hat report {shlex.quote(str(run))}"]
    return commands


def _target_words(run: Path, made: str) -> str:
    """The config of a command line, with its changes that hold for all steps."""
    words, target = [], run.parent.name
    with contextlib.suppress(ValueError):  # quotes that were changed by hand
        words = shlex.split(made)[2:]
    for before, word in zip(["", *words], words, strict=False):
        if before in ("--config", "-c") or (not word.startswith("-") and "=" not in word
                                            and not before.startswith("-")):  # fmt: skip
            target = word
            break
    kept = [word for word in words if "=" in word and _root(word) in OF_ALL_STEPS]
    out = [] if run.parent.parent == RUNS else ["--out", str(run.parent.parent)]
    return shlex.join([target, *kept, *out])


def _root(word: str) -> str:
    return word.split("=")[0].split(".")[0]


def _log_lines(run: Path) -> list[tuple[datetime, str]]:
    return list(_parsed(_read(run / "train.log")))


def _parsed(text: str) -> Iterator[tuple[datetime, str]]:
    for line in text.splitlines():
        with contextlib.suppress(ValueError):  # the rest of a message of several lines
            yield datetime.strptime(line[:19], _STAMP), line[21:]


def _step_by_name(run: Path) -> str | None:
    """Of 2026-11-21_153012-float or ...-float-2."""
    return next((part for part in run.name.split("-")[3:] if part in STEPS), None)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON file; empty where there is none, or where a killed process has left half of one."""
    try:
        found = json.loads(_read(path) or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
