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
from hatcli.cli._pack_tools import Overwrite, add_to
from hatcli.data.packers import PACKERS
from hatcli.errors import ConfigError, UsageError, did_you_mean
from hatcli.registry import Parameter, Part, import_file

if TYPE_CHECKING:
    from hatcli.recipes.packing.pack import PackResult

_CONFIG_OF = {"cityscapes": "unet", "imagenet": "vargconvnet"}
_LONG = 16
"""Choices of more characters would be broken within words on 80 columns."""


class _Datasets(TyperGroup):
    """The group's own commands and one for each packer, which isn't imported for that."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*PACKERS.names(), *(name for name in self.commands if name not in PACKERS.names())]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        name = _packer_in(Path(cmd_name)) if cmd_name.endswith(".py") else cmd_name
        if cmd_name not in self.commands and name in PACKERS.names():
            one = typer.Typer(add_completion=False)
            one.command(cmd_name)(_dataset_command(PACKERS.part(name), cmd_name))
            self.commands[cmd_name] = typer.main.get_command(one)
        return super().get_command(ctx, cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        known = self.list_commands(ctx)
        named = args and not args[0].startswith("-") and not args[0].endswith(".py")
        if named and args[0] not in known:
            raise UsageError(f"no dataset {args[0]!r}", did_you_mean(args[0], known))
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=_Datasets,
    no_args_is_help=True,
    help="Raw archives or folders into a pack: one file, read at random, checked to the last byte."
    "\n\nExample: hat pack cityscapes --split train",
)


add_to(app)


def _packer_in(file: Path) -> str:
    """The name of the packer that a user's file registers.

    Raises:
        ConfigError: the file isn't there, fails, or registers none.
    """
    module = import_file(file, "packer").__name__
    found = [name for name in PACKERS.names() if PACKERS.part(name).module == module]
    if len(found) != 1:
        raise ConfigError(f"packer: {file} registers {len(found)} packers; one is needed")
    return found[0]


def _dataset_command(part: Part, word: str) -> Callable[..., None]:
    """The command of one dataset: the options of all, and those that its packer takes.

    Args:
        part: the packer.
        word: what the command line calls it: its name, or its file.
    """
    own = [parameter for parameter in part.parameters if parameter.name not in PACKERS.given]

    def command(**values: Any) -> None:
        options = {parameter.name: values.pop(parameter.name) for parameter in own}
        given = {name: value for name, value in options.items() if value is not None}
        _pack(part.name, given, word, **values)

    descriptions = _describe_arguments(part)
    parameters = [
        *list(inspect.signature(_pack).parameters.values())[3:],
        *[_as_option(parameter, descriptions.get(parameter.name, "")) for parameter in own],
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__doc__ = f"{part.summary}\n\nExample: hat pack {word} --split train"
    return command


def _pack(
    dataset: str,
    options: Mapping[str, Any],
    word: str,
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
            "-o",
            metavar="DIR",
            help="Gets the folder SPLIT_lmdb or so; the source's folder unless given.",
        ),
    ] = None,
    num_workers: Annotated[
        int | None,
        typer.Option(
            "--num-workers",
            "-j",
            metavar="N",
            help="Processes, 0 for none; one a core unless given, and none where bytes are only "
            "copied. The pack doesn't depend on it.",
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
    shard: Annotated[
        str | None,
        typer.Option(
            "--shard",
            metavar="I/N",
            help="Pack the I-th of N equal parts, on this or another machine; see 'hat pack join'.",
        ),
    ] = None,
    on_error: Annotated[
        str,
        typer.Option(
            "--on-error",
            metavar="fail|quarantine",
            help="What a damaged sample does: end the run, or be left out and listed.",
        ),
    ] = "fail",
    max_quarantine: Annotated[
        float,
        typer.Option(
            "--max-quarantine",
            metavar="SHARE",
            help="Share of the samples that may be left out; one may be in any case.",
        ),
    ] = 0.001,
    overwrite: Overwrite = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Throw away what an unfinished run left.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    from hatcli.cli import _pack_result, _screen
    from hatcli.recipes.packing.pack import pack

    result = _screen.follow(
        pack(
            dataset,
            source or Path("data") / dataset,
            out,
            split,
            num_workers=num_workers,
            pack_type=pack_type,
            expect=expect,
            shard=shard,
            on_error=on_error,
            max_quarantine=max_quarantine,
            overwrite=overwrite,
            restart=restart,
            **options,
        )
    )
    _pack_result.show(result, as_json=as_json)
    _screen.next_command(_what_next(result, word, source, out, options))


def _as_option(parameter: Parameter, description: str) -> inspect.Parameter:
    """A packer's keyword argument as an option; left out, the packer's default holds."""
    kinds: dict[str, Any] = {"int": int, "float": float, "bool": bool}
    kind, metavar = kinds.get(parameter.annotation, str), None
    if parameter.annotation.startswith("Literal["):
        choices = ast.literal_eval(f"({parameter.annotation[len('Literal[') : -1]},)")
        kind = Literal[choices]
        if len("|".join(choices)) > _LONG:
            metavar = parameter.name.upper()
            description = f"{' or '.join(choices)}. {description}"
    option = typer.Option(
        "--" + parameter.name.replace("_", "-"), metavar=metavar, help=description
    )
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


def _what_next(
    result: "PackResult",
    word: str,
    source: Path | None,
    out: Path | None,
    options: Mapping[str, Any],
) -> list[str]:
    """The words of the command for the other split, or of one that puts the pack to use."""
    folder, meta = result.path.parent, result.meta
    if "shard" in meta:
        return ["hat", "pack", "join", str(folder)]
    suffix = result.path.name.removeprefix(meta["split"])
    if meta["split"] == "train" and not (folder / f"val{suffix}").exists():
        places = ["--src", str(source)] if source else []
        places += ["--out", str(out)] if out else []
        places += ["--pack-type", suffix[1:]] if suffix != "_lmdb" else []
        for name, value in options.items():
            option = "--" + name.replace("_", "-")
            places += [option] if value is True else [option, str(value)]
        return ["hat", "pack", word, "--split", "val", *places]
    if word not in _CONFIG_OF:
        verb = ["pack", "verify"] if word.endswith(".py") else ["data", "show"]
        return ["hat", *verb, str(result.path)]
    where = [f"data_rootdir={folder}"] if source or out else []
    if suffix != "_lmdb":
        where += [f"train.dataset.path=train{suffix}", f"val.dataset.path=val{suffix}"]
    return ["hat", "train", _CONFIG_OF[word], *where]
