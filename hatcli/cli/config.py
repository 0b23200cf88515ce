"""hat config: show, check and list configs."""

from typing import Annotated

import typer

from hatcli.cli._options import AsJson, ConfigFile, TargetAndOverrides, read_config

app = typer.Typer(help="Show, check and list configs.", no_args_is_help=True)


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
