"""hat config: show, check, compare and list configs."""

from typing import Annotated, Any

import typer

from hatcli.cli._options import (
    AsJson,
    ConfigFile,
    TargetAndOverrides,
    complete_target,
    read_config,
    split_arguments,
)
from hatcli.errors import UsageError

app = typer.Typer(help="Show, check, compare and list configs.", no_args_is_help=True)


@app.command()
def show(
    arguments: TargetAndOverrides = None, config: ConfigFile = None, as_json: AsJson = False
) -> None:
    """Print a config, overrides applied, as Python that loads back equal.

    Example: hat config show unet optim.lr=0.02 > my_unet.py
    """
    from hatcli.config import show_config

    chosen = read_config(arguments, config)
    if as_json:
        from hatcli.cli import _screen

        _screen.print_json(chosen.values)
    else:
        typer.echo(show_config(chosen), nl=False)


@app.command()
def check(
    arguments: TargetAndOverrides = None,
    config: ConfigFile = None,
    data: Annotated[
        bool, typer.Option("--data", help="Open the data and run one batch through the model too.")
    ] = False,
) -> None:
    """Check every name, argument and value of a config, without training.

    Example: hat config check my_unet.py --data
    """
    from hatcli.recipes.check import check_config

    chosen = read_config(arguments, config)
    check_config(chosen)
    if data:
        from hatcli.cli import _screen
        from hatcli.recipes.dry_run import dry_run

        _screen.follow(dry_run(chosen))
    typer.echo(f"{chosen.name}: ok")


@app.command()
def diff(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="A [B] [KEY=VALUE]...",
            help="Two shipped configs or config files. Settings change B; without B, they are "
            "what A is compared with.",
            show_default=False,
            autocompletion=complete_target,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the entries in which two configs differ.

    The exit code is 0 whether they differ or not; with --json, "differences" is empty if not.

    Example: hat config diff resnet18 mobilenetv2

    Example: hat config diff unet optim.lr=0.02
    """
    from hatcli.config import load_config

    targets, settings = split_arguments(arguments)
    if not 1 <= len(targets) <= 2 or (len(targets) == 1 and not settings):
        raise UsageError(
            f"two configs to compare, got {' and '.join(targets) or 'none'}",
            "name two, or one and settings: hat config diff unet optim.lr=0.02",
        )
    first, second = load_config(targets[0]), load_config(targets[-1], settings)
    from hatcli.cli import _screen
    from hatcli.recipes.diff import ABSENT, differences

    found = differences(first, second)
    names = targets[0], " ".join([targets[-1], *settings])
    if as_json:
        rows = [{"key": row.key, "a": row.first, "b": row.second} for row in found]
        present = [{k: v for k, v in row.items() if v is not ABSENT} for row in rows]
        _screen.print_json({"a": names[0], "b": names[1], "differences": present})
    elif found:
        cells = [(row.key, _shown(row.first, ABSENT), _shown(row.second, ABSENT)) for row in found]
        widths = [max(map(len, column)) for column in zip(("key", *names), *cells, strict=True)]
        if sum(widths) + 4 <= _screen.out.width:
            _screen.print_table("", ["key", *names], cells)
        else:
            _screen.say(f"{names[0]} -> {names[1]}")
            for key, one, other in cells:
                _screen.say(f"{key}: {one} -> {other}")
    else:
        _screen.say(f"{names[0]} and {names[1]}: no difference")


def _shown(value: Any, absent: object) -> str:
    return "-" if value is absent else repr(value)


@app.command(name="list")
def list_configs(as_json: AsJson = False) -> None:
    """Name the shipped configs.

    Example: hat config list
    """
    from hatcli.config import SHIPPED, shipped_configs

    configs = {name: str(path.relative_to(SHIPPED)) for name, path in shipped_configs().items()}
    if as_json:
        from hatcli.cli import _screen

        _screen.print_json(configs)
        return
    for name, path in configs.items():
        typer.echo(f"{name:24}configs/{path}")
