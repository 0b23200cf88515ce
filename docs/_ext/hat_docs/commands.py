"""Every command with its usage, arguments and options, from the application itself."""

import re
from collections.abc import Iterator
from typing import Any

import typer

from hat_docs.markdown import code, mark_code, one_line, table
from hatcli.cli import build_app

EXAMPLE = re.compile(r"^Example: (.*)$")
NUMBERS = {"int": "N", "int range": "N", "float": "X", "float range": "X"}
"""How the types of numbers are told, as elsewhere in the help."""


def walk_commands() -> Iterator[tuple[str, Any, Any]]:
    """Each command that runs: what one types, e.g. "hat pack info", the command, its context."""
    root: Any = typer.main.get_command(build_app())
    yield from _walk(root, root.context_class(root, info_name="hat"))


def _walk(command: Any, context: Any) -> Iterator[tuple[str, Any, Any]]:
    yield context.command_path, command, context
    if not hasattr(command, "list_commands"):
        return
    for name in sorted(command.list_commands(context)):
        child = command.get_command(context, name)
        if not child.hidden:
            yield from _walk(child, child.context_class(child, info_name=name, parent=context))


def commands_page() -> str:
    """All commands as Markdown, groups before their commands."""
    return "\n".join(_section(*entry) for entry in walk_commands())


def _section(path: str, command: Any, context: Any) -> str:
    level = "##" if path.count(" ") < 2 else "###"
    usage = command.get_usage(context).removeprefix("Usage: ")
    arguments = [p for p in command.params if p.param_type_name == "argument" and not p.hidden]
    options = [p for p in command.params if p.param_type_name == "option" and not p.hidden]
    return "\n".join(
        [
            f"{level} {path}\n",
            f"```text\n{one_line(usage)}\n```\n",
            _help(command.help or ""),
            table(
                ["argument", "is"],
                [[code(p.make_metavar(ctx=context)), _meaning(p)] for p in arguments],
            ),
            table(["option", "does"], [[_option(p, context), _meaning(p)] for p in options]),
        ]
    )


def _help(text: str) -> str:
    """Paragraphs as they are, examples as a block of commands."""
    shown, examples = [], []
    for paragraph in re.split(r"\n\s*\n", text):
        match = EXAMPLE.match(one_line(paragraph))
        if match:
            examples.append(match[1])
        else:
            shown.append(mark_code(one_line(paragraph)))
    if examples:
        # No prompt, so that no test takes the examples for a document's own commands.
        shown.append("```text\n" + "\n".join(examples) + "\n```")
    return "\n\n".join(shown) + "\n"


def _option(option: Any, context: Any) -> str:
    """All spellings, then what it takes."""
    names = " ".join(code(name) for name in [*option.opts, *option.secondary_opts])
    if option.is_flag:
        return names
    value = option.make_metavar(ctx=context).strip("<>")
    return f"{names} {code(NUMBERS.get(value, value))}"


def _meaning(parameter: Any) -> str:
    """The help, and what its form says beside: needed, repeatable, the default."""
    remarks = [mark_code(parameter.help or "")]
    if parameter.required and parameter.param_type_name == "option":
        remarks.append("Needed.")
    if getattr(parameter, "multiple", False):
        remarks.append("May be given several times.")
    if parameter.default is not None and not isinstance(parameter.default, bool):
        remarks.append(f"Default: {code(str(parameter.default))}.")
    return " ".join(remarks)
