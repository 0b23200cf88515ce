"""How long onnxruntime takes for each operator of a file, by its own profile."""

import json
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import onnxruntime
from torch import Tensor

from hatcli.errors import ModelFileError
from hatcli.export.runtime import RUNTIME_ERRORS, run_session, shortened

RUNS = 10


def operator_times(path: Path, images: Tensor, *, runs: int = RUNS) -> list[dict[str, Any]]:
    """{"operator", "ms", "count"} of each kind of operator, of one run, the slowest first.

    The file is run once unmeasured, then some times on one thread; of each node the fastest run
    counts.

    Args:
        images: as the file takes them.

    Raises:
        ModelFileError: onnxruntime refuses the file.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        try:
            session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except RUNTIME_ERRORS as error:
            raise ModelFileError(f"{path}: onnxruntime refuses it: {shortened(error)}") from error
        for _ in range(runs + 1):
            run_session(session, images.numpy(), where=path)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            times[event["args"]["op_name"], event["name"]].append(event["dur"] / 1000)
    found: dict[str, list[float]] = defaultdict(list)
    for (operator, _), durations in times.items():
        found[operator].append(min(durations))
    rows = [
        {"operator": operator, "ms": sum(nodes), "count": len(nodes)}
        for operator, nodes in found.items()
    ]
    return sorted(rows, key=lambda row: -row["ms"])
