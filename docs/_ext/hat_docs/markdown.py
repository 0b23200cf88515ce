"""Google docstrings and tables as Markdown."""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

SECTION = re.compile(r"^(Args|Attributes|Raises|Returns|Yields):$", re.MULTILINE)
ENTRY = re.compile(r"^    (\*{0,2}\w+): (.*(?:\n(?: {5,}.*|(?=\n)))*)", re.MULTILINE)

SETTING = re.compile(r"(?<![`\w-])(--[a-z][\w-]*|[a-z][\w.]*=[^\s,;]*\w)")


class Docstring(NamedTuple):
    """A docstring in Google form.

    Attributes:
        text: what stands before the sections.
        entries: of a section, e.g. "Args": name -> description on one line.
    """

    text: str
    entries: dict[str, dict[str, str]]


def read_docstring(docstring: str) -> Docstring:
    """Split a docstring, cleaned of its indentation, into text and sections."""
    text, *sections = SECTION.split(docstring)
    entries = {
        name: {match[1]: one_line(match[2]) for match in ENTRY.finditer(body)}
        for name, body in zip(sections[::2], sections[1::2], strict=True)
    }
    return Docstring(text.strip(), entries)


def one_line(text: str) -> str:
    """The text with its line breaks and runs of spaces as single spaces."""
    return " ".join(text.split())


def code(text: str) -> str:
    """A word as code, which may hold backticks or, in a table, bars."""
    fence = "``" if "`" in text else "`"
    return f"{fence}{text}{fence}"


def mark_code(text: str) -> str:
    """Plain text in which options and settings stand as code."""
    return SETTING.sub(r"`\1`", text)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; bars within cells are escaped. Nothing when there is no row."""
    lines = [_row(row) for row in rows]
    if not lines:
        return ""
    return "\n".join([_row(heads), _row(["---"] * len(heads)), *lines]) + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(one_line(cell).replace("|", "\\|") for cell in cells) + " |"
