"""The command ``hat``: one module beside this one is one subcommand.

A command module parses, calls one recipe and draws what that yields. At module level it imports
nothing heavy, so that ``--help`` and usage errors answer at once.
"""

import importlib
import os
import pkgutil
import sys
import traceback
from typing import Any

import typer
from typer.core import TyperGroup

from hatcli import __version__
from hatcli.cli._encoding import prepare_streams
from hatcli.cli._processes import TOGETHER, rank
from hatcli.errors import HatError, StoppedBySignal, ToldElsewhere

INTERNAL_ERROR = 70
SIGINT_EXIT = 130
SIGPIPE_EXIT = 141

_JOURNEY = (
    *("doctor", "demo", "pack", "data", "ops", "train", "eval", "export", "predict"),
    *("report", "quantize", "bench", "models", "config"),
)
"""The commands as one comes to need them; what isn't named here stands behind."""


class _Commands(TyperGroup):
    """Lists the commands in the order of the journey, and not of the alphabet."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Every name once."""
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: (*_JOURNEY, name).index(name))


def build_app() -> typer.Typer:
    """The Typer application with every command module beside this file."""
    app = typer.Typer(
        name="hat",
        cls=_Commands,
        help="From a raw dataset to a fixed-point model that runs.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for module_info in pkgutil.iter_modules(__path__):
        if module_info.name.startswith("_"):
            continue
        module = importlib.import_module(f"{__name__}.{module_info.name}")
        if hasattr(module, "app"):
            app.add_typer(module.app, name=module_info.name)
        else:
            app.command(name=module_info.name)(module.main)
    return app


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"hat {__version__}")
        raise typer.Exit


def _root(
    context: typer.Context,
    _version: bool = typer.Option(
        False, "--version", is_eager=True, callback=_print_version, help="Print the version."
    ),
    debug: bool = typer.Option(
        False, "--debug", help="Show the traceback of expected failures too."
    ),
) -> None:
    if debug:
        os.environ["HAT_DEBUG"] = "1"
    if rank() > 0 and context.invoked_subcommand not in TOGETHER:
        name = context.invoked_subcommand
        print(f"rank {rank()}: 'hat {name}' runs in rank 0 alone", file=sys.stderr)
        raise typer.Exit


def main() -> None:
    """Run the command line and exit with its code."""
    prepare_streams()
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except OSError as error:
        code = _output_failed(error)
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code; expected failures are 1 to 3 lines."""
    try:
        result = build_app()(arguments, prog_name="hat", standalone_mode=False)
    except HatError as error:
        if os.environ.get("HAT_DEBUG"):
            traceback.print_exc()
        if not _is_told_by_main(error):
            complain(error.message, error.hint)
        return error.exit_code
    except KeyboardInterrupt:
        complain("stopped")
        return SIGINT_EXIT
    except OSError as error:
        if isinstance(error, BrokenPipeError) or error.filename is None:
            return _output_failed(error)
        return _internal_error(error)
    except Exception as error:  # noqa: BLE001 - the last resort of a program
        if hasattr(error, "format_message"):  # what Typer raises for wrong usage
            return _usage_error(error)
        return _internal_error(error)
    if result == SIGINT_EXIT:  # Typer has caught the KeyboardInterrupt
        complain("stopped")
    return result if isinstance(result, int) else 0


def complain(message: str, hint: str | None = None) -> None:
    """Print an expected failure to stderr; of several processes all but one do so in a line."""
    which = rank()
    print(f"error{f' (rank {which})' if which else ''}: {message}", file=sys.stderr)
    if hint and not which:
        print(f"hint: {hint}", file=sys.stderr)


def _is_told_by_main(error: HatError) -> bool:
    return isinstance(error, ToldElsewhere) or (isinstance(error, StoppedBySignal) and rank() > 0)


def _usage_error(error: Exception) -> int:
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError" and context is not None:
        typer.echo(context.get_help())
        return 2
    command = context.command_path if context is not None else "hat"
    complain(error.format_message().rstrip("."), f"'{command} --help' shows the usage")  # type: ignore[attr-defined]
    return 2


def _output_failed(error: OSError) -> int:
    """Stdout is closed (a pipe to ``head``) or full; say the latter, keep silent on the first."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())  # so that the interpreter's last flush succeeds
    if isinstance(error, BrokenPipeError):
        return SIGPIPE_EXIT
    complain(f"cannot write the output: {error.strerror or error}")
    return 1


def _internal_error(error: Exception) -> int:
    """Tell of an error that nobody expected: in a file of the user's, or a defect."""
    from hatcli.registry import user_files

    traceback.print_exc()
    frames = traceback.extract_tb(error.__traceback__)
    for frame in reversed(frames):
        if os.path.realpath(frame.filename) in user_files:
            what = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            place = f"{os.path.relpath(frame.filename)}:{frame.lineno}"
            complain(f"{place}: {what}", f"that line of your own file says: {frame.line}")
            return 1
    complain("this is a defect of hat", "please report it with the lines above")
    return INTERNAL_ERROR
