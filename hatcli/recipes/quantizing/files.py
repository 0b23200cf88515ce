"""What hat quantize leaves in its run folder beside the checkpoint: figures, report, ONNX file."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from hatcli.config import Config
from hatcli.errors import HatError
from hatcli.events import Job, Warned
from hatcli.export.latency import operator_times
from hatcli.recipes.exporting.export import ExportResult, ExportSettings, export_checkpoint
from hatcli.recipes.runs.folder import RunFolder, write_json
from hatcli.recipes.training.workbench import recorded
from hatcli.report.quantization import write_report


def publish(run: RunFolder, document: dict[str, Any]) -> None:
    """Write quantize.json, and report.html from it."""
    write_json(run.path / "quantize.json", document)
    write_report(run.path / "report.html", document)


def export_measured(
    checkpoint: Path, config: Config, image: Tensor, run: RunFolder, document: dict[str, Any]
) -> Job[ExportResult | None]:
    """The ONNX file; its parity, kernels and times go into the document.

    A file that can't be written, or differs from int_infer, is a warning: the figures stay.

    Args:
        image: (1, 3, H, W) float32, as the model takes it: what the times are of.
        document: changed in place.
    """
    batch, channels, height, width = config["deploy"].get("shape") or image.shape
    shape = (batch, channels, height, width)
    settings = ExportSettings(path=run.path / f"{config.name}.onnx", shape=shape)
    try:
        exported = yield from export_checkpoint(checkpoint, settings)
        times = operator_times(exported.file, image.cpu().contiguous())
    except HatError as error:
        hint = f" ({error.hint})" if error.hint else ""
        yield from recorded(run, [Warned(f"no ONNX file: {error.message}{hint}")])
        document["export_error"] = error.message
        return None
    document["parity"] = None if exported.parity is None else asdict(exported.parity)
    document["fusion"] = None if exported.fusion is None else asdict(exported.fusion)
    document["latency"] = times
    return exported
