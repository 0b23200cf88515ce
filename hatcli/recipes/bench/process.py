"""Times one model file in a process of its own, so that its memory is its own too.

It is started as a module and spoken to in lines of JSON: first the task, then "round" as often as
a measurement is wanted, then "end". An ONNX file is run without torch, as one who deploys it would.
"""

import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hatcli.errors import HatError

WARM_UP = 3
SHORTEST_S = 0.02  # of a measurement: quicker models run several times in it

_STATUS = Path("/proc/self/status")


def main() -> None:
    """Serve until the other side says "end" or is gone."""
    task = json.loads(sys.stdin.readline())
    try:
        run, start = _onnx(task) if task["kind"] == "onnx" else _torch(task)
        for _ in range(WARM_UP):
            first = _timed(run, 1)
    except HatError as error:
        _say({"error": error.message})
        return
    runs = max(1, math.ceil(SHORTEST_S / first))
    _say({"start_bytes": start, "runs": runs})
    for line in sys.stdin:
        if line.strip() == "end":
            _say({"peak_bytes": peak_memory()})
            return
        _say({"seconds": _timed(run, runs)})


def peak_memory() -> int:
    """The most bytes of memory that this process has had at a time."""
    if _STATUS.exists():  # what getrusage tells includes the process that started this one
        for line in _STATUS.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _timed(run: Callable[[], Any], runs: int) -> float:
    """Seconds of one run."""
    started = time.perf_counter()
    for _ in range(runs):
        run()
    return (time.perf_counter() - started) / runs


def _onnx(task: Mapping[str, Any]) -> tuple[Callable[[], Any], int]:
    """What runs the file once, and the memory that its libraries alone take."""
    from hatcli.export.runtime import open_session, run_session

    start = peak_memory()
    path = Path(task["file"])
    session = open_session(path, where=path, threads=task["threads"])
    images = _images(task["shape"])
    if session.get_inputs()[0].type == "tensor(uint8)":
        images = (images * 255).astype(np.uint8)
    return lambda: run_session(session, images, where=path), start


def _torch(task: Mapping[str, Any]) -> tuple[Callable[[], Any], int]:
    """The same of a checkpoint."""
    import torch

    from hatcli.config import from_values
    from hatcli.recipes.build import model_from_checkpoint, open_checkpoint
    from hatcli.recipes.check import import_user_modules

    start = peak_memory()
    torch.set_num_threads(task["threads"])
    plain = task.get("weights_of")
    weights_of = None if plain is None else from_values(plain["name"], plain["values"])
    if weights_of is not None:
        import_user_modules(weights_of)
    config, model = model_from_checkpoint(open_checkpoint(Path(task["file"]), weights_of))
    model = model.to(memory_format=torch.channels_last)
    images = torch.from_numpy(_images(task["shape"])).to(memory_format=torch.channels_last)
    argmax = bool(config["deploy"].get("argmax"))

    def run() -> Any:
        with torch.inference_mode():
            scores = model(images)
            return scores.argmax(1, keepdim=True) if argmax else scores

    return run, start


def _images(shape: tuple[int, ...]) -> np.ndarray:
    """(N, C, H, W) float32 in 0 to 1, the same for each file."""
    return np.random.default_rng(0).random(shape, np.float32)


def _say(document: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
