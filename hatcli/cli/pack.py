"""``hat pack DATASET``: a raw dataset into one file that reads fast and can be trusted."""

import ast
import importlib.util
import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from hatcli.cli._options import AsJson
from hatcli.data.packers import PACKERS
from hatcli.errors import UsageError, did_you_mean
from hatcli.registry import Parameter, Part

if TYPE_CHECKING:
    from hatcli.recipes.pack import PackResult

_CONFIG_OF = {"segmentation": "unet", "classification": "vargconvnet"}


class _Datasets(TyperGroup):
    """The group's own commands and one for each packer, which isn't imported for that."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*PACKERS.names(), *(name for name in self.commands if name not in PACKERS.names())]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.commands and cmd_name in PACKERS.names():
            one = typer.Typer(add_completion=False)
            one.command(cmd_name)(_dataset_command(PACKERS.part(cmd_name)))
            self.commands[cmd_name] = typer.main.get_command(one)
        return super().get_command(ctx, cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        known = self.list_commands(ctx)
        if args and not args[0].startswith("-") and args[0] not in known:
            raise UsageError(f"no dataset {args[0]!r}", did_you_mean(args[0], known))
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=_Datasets,
    no_args_is_help=True,
    help="Raw archives or folders into a pack: one file, read at random, checked to the last byte."
    "\n\nExample: hat pack cityscapes --split train",
)


@app.callback()
def _keep_group() -> None:
    """Without a callback, a group without commands of its own is none."""


def _dataset_command(part: Part) -> Callable[..., None]:
    """The command of one dataset: the options of all, and those that its packer takes."""
    own = [parameter for parameter in part.parameters if parameter.name not in PACKERS.given]

    def command(**values: Any) -> None:
        options = {parameter.name: values.pop(parameter.name) for parameter in own}
        given = {name: value for name, value in options.items() if value is not None}
        _pack(part.name, given, **values)

    descriptions = _describe_arguments(part)
    parameters = [
        *list(inspect.signature(_pack).parameters.values())[2:],
        *[_as_option(parameter, descriptions.get(parameter.name, "")) for parameter in own],
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__doc__ = f"{part.summary}\n\nExample: hat pack {part.name} --split train"
    return command


def _pack(
    dataset: str,
    options: Mapping[str, Any],
    *,
    split: Annotated[
        str,
        typer.Option(
            "--split", "--split-name", metavar="SPLIT", help="Which part: train, val, ..."
        ),
    ],
    source: Annotated[
        Path | None,
        typer.Option(
            "--src",
            "--src-data-dir",
            metavar="DIR",
            help="Where the raw dataset is; data/DATASET unless given.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "--target-data-dir",
            metavar="DIR",
            help="Gets the folder SPLIT_lmdb; the source's folder unless given.",
        ),
    ] = None,
    num_workers: Annotated[
        int | None,
        typer.Option(
            "--num-workers",
            "-j",
            metavar="N",
            help="Processes, 0 for none; one a core unless given. The pack doesn't depend on it.",
        ),
    ] = None,
    pack_type: Annotated[
        str, typer.Option("--pack-type", metavar="lmdb|mxrecord", help="Kind of file.")
    ] = "lmdb",
    expect: Annotated[
        str,
        typer.Option(
            "--expect", metavar="any|official", help="Insist on the published number of images."
        ),
    ] = "any",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a pack that is there.")
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Throw away what an unfinished run left.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    from hatcli.cli import _screen
    from hatcli.recipes.pack import pack

    result = _screen.follow(
        pack(
            dataset,
            source or Path("data") / dataset,
            out,
            split,
            num_workers=num_workers,
            pack_type=pack_type,
            expect=expect,
            overwrite=overwrite,
            restart=restart,
            **options,
        )
    )
    if as_json:
        _screen.print_json(_as_document(result))
    else:
        _show(result)
    _screen.next_command(_what_next(result, source, out))


def _as_option(parameter: Parameter, description: str) -> inspect.Parameter:
    """A packer's keyword argument as an option; left out, the packer's default holds."""
    kinds: dict[str, Any] = {"int": int, "float": float, "bool": bool}
    kind = kinds.get(parameter.annotation, str)
    if parameter.annotation.startswith("Literal["):
        choices = ast.literal_eval(f"({parameter.annotation[len('Literal[') : -1]},)")
        kind = Literal[choices]
    option = typer.Option("--" + parameter.name.replace("_", "-"), help=description)
    return inspect.Parameter(
        parameter.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, option],
    )


def _describe_arguments(part: Part) -> dict[str, str]:
    """What the docstring of a packer's function says of each argument; read, not imported."""
    spec = importlib.util.find_spec(part.module)
    if spec is None or spec.origin is None:
        return {}
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    function = next(
        node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == part.name
    )
    arguments = (ast.get_docstring(function) or "").partition("Args:")[2].partition("\n\n")[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", arguments, re.MULTILINE)
    return {name: re.sub(r"\s+", " ", text[0].upper() + text[1:]) for name, text in entries}


def _show(result: "PackResult") -> None:
    from hatcli.cli import _screen
    from hatcli.data.packs.disk import size_text

    meta = result.meta
    checks = "every record read back"
    if meta["options"].get("check") == "decode":
        checks = f"every image decoded, {checks}"
    kinds = [f"{kind} ({count})" for kind, count in meta.get("counts", {}).items()]
    rows = [
        ("images", f"{meta['length']}"),
        ("bytes", f"{result.size_bytes} ({size_text(result.size_bytes)})"),
        ("image sizes", _image_sizes(meta.get("sizes", {}))),
        ("image kinds", ", ".join(kinds)),
        *_class_rows(meta),
        ("content sha256", meta["content_sha256"][:16]),
        ("checks", checks),
        ("seconds", f"{result.seconds:.1f}"),
    ]
    if result.resumed_at:
        rows.append(("from an earlier run", f"{result.resumed_at}"))
    _screen.print_table(str(result.path), ("", ""), rows)
    if "class_pixels" in meta:
        _show_classes(meta)


def _image_sizes(sizes: Mapping[str, Any]) -> str:
    """Each size and how often it occurs; where there are too many, the range of each side."""
    return ", ".join(
        f"{size} ({n})" if isinstance(n, int) else f"{size} {_range_text(n)}"
        for size, n in sizes.items()
    )


def _class_rows(meta: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Images a class, in two lines: there may be a thousand classes."""
    counts = sorted(count for count in meta.get("class_images", []) if count)
    if not counts:
        return []
    spread = {"min": counts[0], "median": counts[(len(counts) - 1) // 2], "max": counts[-1]}
    classes = f"{len(counts)} of {meta['num_classes']} have images"
    return [("classes", classes), ("images a class", _range_text(spread))]


def _range_text(spread: Mapping[str, int]) -> str:
    if spread["min"] == spread["max"]:
        return str(spread["min"])
    return f"{spread['min']} to {spread['max']} (median {spread['median']})"


def _show_classes(meta: Mapping[str, Any]) -> None:
    from hatcli.cli import _screen

    pixels = dict(zip(meta["classes"], meta["class_pixels"], strict=True))
    pixels["(ignored)"] = meta["ignored_pixels"]
    total = sum(pixels.values())
    rows = [(name, f"{count}", f"{100 * count / total:.2f}") for name, count in pixels.items()]
    _screen.print_table("", ("class", "pixels", "share %"), rows)


def _as_document(result: "PackResult") -> dict[str, Any]:
    return {
        "path": str(result.path),
        "images": result.meta["length"],
        "bytes": result.size_bytes,
        "seconds": round(result.seconds, 3),
        "resumed_at": result.resumed_at,
        "remarks": result.remarks,
        "meta": result.meta,
    }


def _what_next(result: "PackResult", source: Path | None, out: Path | None) -> str:
    """The other split, or the training that reads what is packed."""
    folder = result.path.parent
    suffix = result.path.name.removeprefix(result.meta["split"])
    if result.meta["split"] == "train" and not (folder / f"val{suffix}").exists():
        places = f" --src {source}" if source else ""
        places += f" --out {out}" if out else ""
        return f"hat pack {result.meta['dataset']} --split val{places}"
    where = f" data_rootdir={folder}" if source or out else ""
    return f"hat train {_CONFIG_OF.get(result.meta['task'], 'CONFIG')}{where}"
