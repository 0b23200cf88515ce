"""hat export: write a checked ONNX file."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hatcli.cli._options import (
    AsJson,
    ConfigFile,
    TargetAndOverrides,
    Weights,
    find_model_file,
    one_target,
    parse_shape,
)
from hatcli.config import load_config
from hatcli.errors import UsageError
from hatcli.events import size_text

if TYPE_CHECKING:
    from hatcli.export.fusion import Fusion
    from hatcli.export.parity import Parity
    from hatcli.recipes.exporting.export import ExportResult

CHECKPOINTS = (".pth", ".tar", ".pt")
NOUNS = {"onnx": "an ONNX file", "safetensors": "a file of weights"}


def main(
    arguments: TargetAndOverrides = None,
    config: ConfigFile = None,
    ckpt: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Checkpoint; best.pth: that of the newest run."),
    ] = None,
    weights: Weights = None,
    onnx_name: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "--onnx-name",
            "-o",
            metavar="FILE",
            help="File to write; by default named after the config.",
            show_default=False,
        ),
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(
            "--shape",
            "--input-shape",
            metavar="N,C,H,W",
            help="Size of the images; by default deploy.shape of the config.",
            show_default=False,
        ),
    ] = None,
    dynamic: Annotated[
        Literal["none", "batch", "size", "both"],
        typer.Option(
            metavar="SIDES",
            help="What the file leaves open: none, batch (N), size (H and W), or both.",
        ),
    ] = "both",
    opset: Annotated[int, typer.Option(help="ONNX operator set, 18 to 25.")] = 18,
    with_preprocess: Annotated[
        bool,
        typer.Option(
            "--with-preprocess", help="Take uint8 RGB images; the colour space is in the file."
        ),
    ] = False,
    argmax: Annotated[
        bool | None,
        typer.Option(
            "--argmax/--no-argmax",
            help="Give class indices, or scores; by default as deploy.argmax says.",
            show_default=False,
        ),
    ] = None,
    tolerance: Annotated[
        float,
        typer.Option(help="Largest difference to torch, as a share of the largest score."),
    ] = 1e-4,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file if it exists.")
    ] = False,
    file_format: Annotated[
        Literal["onnx", "safetensors"],
        typer.Option("--format", metavar="FORMAT", help="onnx, or safetensors: the weights alone."),
    ] = "onnx",
    verify: Annotated[
        Path | None,
        typer.Option(
            "--verify",
            metavar="FILE",
            help="Write nothing: compare an integer .onnx with int_infer on this processor.",
            show_default=False,
        ),
    ] = None,
    images: Annotated[
        int, typer.Option(min=1, metavar="N", help="Images that --verify compares.")
    ] = 8,
    as_json: AsJson = False,
) -> None:
    """Write a checkpoint's deployed model as ONNX, checked against onnxruntime.

    A checkpoint of calibration, qat or int_infer becomes a model of integers,
    and every code of its result is compared with int_infer.

    Example: hat export --ckpt best.pth

    Example: hat export unet --ckpt best.pth --dynamic batch --with-preprocess -o unet.onnx

    Example: hat export --verify unet-int_infer.onnx --images 50

    Example: hat export --ckpt best.pth --format safetensors
    """
    target, overrides = one_target(arguments, config)
    if verify is not None:
        if target is not None or ckpt is not None or weights is not None:
            raise UsageError("--verify takes its file alone", "e.g. hat export --verify unet.onnx")
        _verify(verify, images, overrides, as_json=as_json)
        return
    if target is not None and target.endswith((*CHECKPOINTS, ".onnx")):
        if ckpt is not None:
            raise UsageError(f"two files to export: {target} and {ckpt}")
        ckpt, target = target, None
    if ckpt is None and weights is None:
        raise UsageError("which checkpoint?", "give --ckpt FILE, e.g. --ckpt best.pth")
    for given in (ckpt, weights):
        _refuse_onnx(given)
    _require_suffix(onnx_name, file_format)
    sizes = None if shape is None else parse_shape(shape)
    chosen = None
    if target is not None:
        from hatcli.recipes.check import check_config

        chosen = load_config(target, overrides)
        check_config(chosen)
    file, found = find_model_file(ckpt, weights, chosen)
    from hatcli.cli import _screen

    if found:
        _screen.tell(found)
    if file_format == "safetensors":
        _write_weights(file, onnx_name, overwrite=overwrite, as_json=as_json)
        return
    from hatcli.recipes.exporting.export import ExportSettings, export_checkpoint

    settings = ExportSettings(
        onnx_name, sizes, dynamic, opset, with_preprocess, argmax, tolerance, overwrite
    )
    job = export_checkpoint(
        file, settings, config=chosen, overrides=overrides, is_weights=weights is not None
    )
    result = _screen.follow(job)
    _show(result, as_json=as_json)
    _screen.next_command(["hat", "eval", result.file])


def _refuse_onnx(given: str | Path | None) -> None:
    """Refuse an ONNX file in place of a checkpoint."""
    if given is not None and Path(given).suffix == ".onnx":
        raise UsageError(
            f"{given}: is an ONNX file already; exported are checkpoints",
            f"score it: hat eval {given}; compare it anew: hat export --verify {given}",
        )


def _require_suffix(path: Path | None, file_format: str) -> None:
    """Refuse a name that other commands wouldn't take for a file of its format."""
    if path is None or path.suffix == f".{file_format}":
        return
    stem = path.stem if path.suffix[1:].isalpha() else path.name  # 1.2 is a version
    hint = f"-o {path.with_name(f'{stem}.{file_format}')}"
    other = {"onnx": "safetensors", "safetensors": "onnx"}[file_format]
    if path.suffix == f".{other}":
        hint = f"give --format {other}, or {hint}"
    raise UsageError(f"-o {path}: the name of {NOUNS[file_format]} ends in .{file_format}", hint)


def _show(result: "ExportResult", *, as_json: bool) -> None:
    from hatcli.cli import _screen

    if as_json:
        _screen.print_json(asdict(result))
        return
    for line in _lines(result):
        _screen.say(line)


def _write_weights(file: Path, path: Path | None, *, overwrite: bool, as_json: bool) -> None:
    from hatcli.cli import _screen
    from hatcli.recipes.exporting.weights import export_weights

    result = _screen.follow(export_weights(file, path, overwrite=overwrite))
    if as_json:
        _screen.print_json(asdict(result))
        return
    kind = "averaged weights" if result.averaged else "weights"
    _screen.say(
        f"{result.file}   {size_text(result.size_bytes)}   {result.step}   "
        f"{kind}: {result.tensors} tensors, {result.parameters / 1e6:.2f} M numbers"
    )


def _verify(file: Path, images: int, overrides: list[str], *, as_json: bool) -> None:
    if not file.is_file():
        raise UsageError(f"--verify: no such file: {file}")
    from hatcli.cli import _screen
    from hatcli.recipes.exporting.integer import verify_file

    result = _screen.follow(verify_file(file, count=images, overrides=overrides))
    if as_json:
        _screen.print_json(asdict(result))
        return
    vnni = {True: "int8 products don't saturate", False: "NO VNNI: int8 products may saturate"}
    about = f" ({vnni[result.vnni]})" if result.vnni is not None else ""
    _screen.say(f"{file}   on {result.processor}{about}")
    for line in _integer_lines(result.parity, result.fusion):
        _screen.say(line)


def _integer_lines(parity: "Parity", fusion: "Fusion") -> list[str]:
    equal = "equal to" if parity.differing == 0 else f"{parity.differing} differ from"
    promise = (
        ""
        if parity.promised
        else " (not promised: layers in float or of 16 bits, or another target)"
    )
    lines = [
        f"  parity  {parity.values} results of {parity.images} images: {equal} int_infer{promise}"
    ]
    if parity.layers:
        lines.append(f"          and every code of {parity.layers} tensors inside, on the first")
    if parity.differing:
        lines.append(
            f"          by at most {parity.largest:g} codes, same class on "
            f"{_percent(parity.same_class)}"
        )
    kernels = ", ".join(f"{n} {name}" for name, n in list(fusion.kernels.items())[:4])
    lines.append(f"  onnxruntime runs it as {kernels}")
    for layer in fusion.float_layers:
        lines.append(
            f"  in float: {layer.layer} ({layer.operator}): {layer.why}; to do: {layer.remedy}"
        )
    return lines


def _lines(result: "ExportResult") -> list[str]:
    count = sum(result.nodes.values())
    frequent = ", ".join(f"{n} {name}" for name, n in list(result.nodes.items())[:4])
    transforms = ", ".join(result.batch_transforms) or "no batch transforms"
    prepared = f"RGB; inside: {transforms}" if result.with_preprocess else f"after {transforms}"
    lines = [
        f"{result.file}   {size_text(result.size_bytes)}   {result.step}   opset {result.opset}"
        f"   {count} nodes: {frequent}",
        f"  input   {result.input} {prepared}",
        f"  output  {result.output}",
    ]
    for check in result.checks:
        lines.append(
            f"  check   {'x'.join(map(str, check.shape))}: differs from torch by at most "
            f"{check.largest:.1e} ({check.relative:.1e} of the largest score, "
            f"{result.tolerance:.0e} allowed), same class on {_percent(check.same_class)}"
        )
    if result.parity is not None and result.fusion is not None:
        lines += _integer_lines(result.parity, result.fusion)
    return lines


def _percent(share: float) -> str:
    """Never rounded up to 100."""
    return f"{int(share * 1e5) / 1e3:.3f} %"
