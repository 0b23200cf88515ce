"""Options that several commands share, and how a command line names its config."""

from pathlib import Path
from typing import Annotated

import typer

from hatcli.config import Config, load_config, shipped_configs
from hatcli.errors import UsageError


def complete_target(incomplete: str) -> list[str]:
    """The shipped configs whose names begin like this, for the shell."""
    return [name for name in shipped_configs() if name.startswith(incomplete)]


TargetAndOverrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[TARGET] [KEY=VALUE]...",
        help="A shipped config (unet), a config file, and settings such as optim.lr=0.02.",
        show_default=False,
        autocompletion=complete_target,
    ),
]
ConfigFile = Annotated[
    str | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="A config file instead of TARGET. It is Python and runs with your rights: "
        "open only configs that you trust.",
        show_default=False,
    ),
]
Device = Annotated[
    str, typer.Option("--device", metavar="auto|cpu|cuda[:N]", help="Where to compute.")
]
Devices = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="DEVICE",
        help="auto, cpu, cuda, cuda:N; or several GPUs such as 0,1 (or cpu,cpu): one process for "
        "each, by torchrun.",
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        "--weights",
        metavar="FILE",
        help="Plain weights of TARGET's network: .pth, .pt or .safetensors.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")]
RunsDir = Annotated[
    Path | None, typer.Option("--out", "-o", metavar="DIR", help="Where run folders go: runs.")
]


def split_arguments(arguments: list[str] | None) -> tuple[list[str], list[str]]:
    """Positional words into targets and "key=value" overrides."""
    words = arguments or []
    return [w for w in words if "=" not in w], [w for w in words if "=" in w]


def one_target(
    arguments: list[str] | None, config_file: str | None
) -> tuple[str | None, list[str]]:
    """The one TARGET (or --config) of a command line, if any, and its overrides.

    Raises:
        UsageError: more than one target.
    """
    targets, overrides = split_arguments(arguments)
    if config_file is not None:
        targets.append(config_file)
    if len(targets) > 1:
        raise UsageError(
            f"one target is enough, got {' and '.join(map(repr, targets))}",
            "settings are written key=value, e.g. optim.lr=0.02",
        )
    return (targets[0] if targets else None), overrides


def read_config(arguments: list[str] | None, config_file: str | None) -> Config:
    """The config that a command line names, with its overrides.

    Raises:
        UsageError: no target is named.
    """
    target, overrides = one_target(arguments, config_file)
    if target is None:
        raise UsageError("which config?", "name one, e.g. unet, or give --config FILE")
    return load_config(target, overrides)


def find_model_file(
    ckpt: str | None, weights: Path | None, config: Config | None
) -> tuple[Path, str | None]:
    """The file that --ckpt or --weights names, and the line that says which run it is from.

    Raises:
        UsageError: there is none, or both are given, or weights without a config.
    """
    if weights is None:
        from hatcli.recipes.runs.folder import RUNS, find_checkpoint

        assert ckpt is not None
        file, found = find_checkpoint(ckpt, config.name if config else None)
        if not file.is_file():
            if file.suffix == ".onnx":
                hint = f"hat export --ckpt best.pth -o {file.name}"
                raise UsageError(f"no such file: {file}", f"write one: {hint}")
            raise UsageError(f"checkpoint not found: {file}", f"runs are in {RUNS}/")
        return file, found
    if ckpt is not None:
        raise UsageError(f"two files: {ckpt} and {weights}", "give --ckpt or --weights")
    if config is None:
        raise UsageError("--weights: which network? plain weights don't say", "name a config")
    if not weights.is_file():
        raise UsageError(f"weights not found: {weights}")
    return weights, None


def parse_shape(text: str) -> tuple[int, int, int, int]:
    """Read "1,3,224,224" as (1, 3, 224, 224).

    Raises:
        UsageError: not four positive integers of a sane size.
    """
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if len(sizes) != 4 or min(sizes) < 1 or max(sizes) > 65536:
        raise UsageError(f"shape {text!r}: give four sizes N,C,H,W such as 1,3,224,224")
    return sizes[0], sizes[1], sizes[2], sizes[3]
