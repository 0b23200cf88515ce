"""hat ops: multiply-adds and parameters of a model."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hatcli.cli._options import (
    AsJson,
    ConfigFile,
    TargetAndOverrides,
    one_target,
    parse_shape,
    read_config,
)

if TYPE_CHECKING:
    from hatcli.opcount import OpCount, OpRow


def main(
    arguments: TargetAndOverrides = None,
    config: ConfigFile = None,
    shape: Annotated[
        str | None,
        typer.Option(
            "--shape",
            "--input-shape",
            metavar="N,C,H,W",
            help="Size of the input; by default deploy.shape of the config.",
            show_default=False,
        ),
    ] = None,
    heads: Annotated[
        Literal["deploy", "all"],
        typer.Option(help="Count what is deployed, or the model as it is trained."),
    ] = "deploy",
    depth: Annotated[int, typer.Option(min=1, help="1 shows stages, more shows layers.")] = 1,
    counter: Annotated[
        Literal["flop", "thop"],
        typer.Option(help="Who counts: torch, exactly; or thop, with its published-style totals."),
    ] = "flop",
    as_json: AsJson = False,
) -> None:
    """Count the multiply-adds and parameters of a config's model.

    Example: hat ops unet --shape 1,3,1024,2048 --depth 3
    """
    target, _ = one_target(arguments, config)
    chosen = read_config(arguments, config)
    sizes = None if shape is None else parse_shape(shape)
    from hatcli.recipes.check import check_config

    check_config(chosen)
    from hatcli.cli import _screen
    from hatcli.recipes.ops import count_ops

    result = _screen.follow(count_ops(chosen, shape=sizes, heads=heads, counter=counter))
    if as_json:
        _screen.print_json({"model": chosen["model"]["type"], "heads": heads, **_document(result)})
    else:
        gops = result.ops / 1e9
        _screen.print_table(
            f"{chosen.name} · input {_sizes(result.shape)} · counted by {counter}",
            ["stage" if depth == 1 else "layer", "output", "params", "MACs", "share"],
            _table(result, depth),
            footer=f"1 MAC = 2 operations: {result.macs / 1e9:.3f} GMACs = {gops:.2f} GOPs",
        )
    _screen.next_command(f"hat train {target}")


def _table(result: "OpCount", depth: int) -> list[list[str]]:
    rows = [
        _cells(row.name, _outputs(row), row.params, row.macs, result.macs)
        for row in result.at_depth(depth)
        if row.params or row.macs
    ]
    return [*rows, _cells("total", "", result.params, result.macs, result.macs)]


def _cells(name: str, output: str, params: int, macs: int, total: int) -> list[str]:
    share = f"{100 * macs / total:.0f} %" if total else "-"
    return [name, output, f"{params / 1e6:.3f} M", f"{macs / 1e9:.3f} G", share]


def _outputs(row: "OpRow") -> str:
    """Without the batch size; of several maps the first and the last."""
    if not row.outputs:
        return ""
    first, last = _sizes(row.outputs[0][1:]), _sizes(row.outputs[-1][1:])
    return first if len(row.outputs) == 1 else f"{first} … {last}"


def _sizes(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _document(result: "OpCount") -> dict[str, Any]:
    return {
        "shape": result.shape,
        "counter": result.counter,
        "macs": result.macs,
        "ops": result.ops,
        "params": result.params,
        "rows": [
            {"name": row.name, "outputs": row.outputs, "params": row.params, "macs": row.macs}
            for row in result.rows
        ],
    }
