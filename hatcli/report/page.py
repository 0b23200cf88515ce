"""One HTML page that needs nothing but itself: elements, tables, and the shell around sections."""

import base64
import contextlib
import hashlib
import html
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from hatcli.errors import HatError
from hatcli.report.style import SCRIPT, STYLE

NOTHING = "–"

_NOT_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


class Markup(str):
    """Finished HTML; `element` takes it as it is and escapes every other string."""

    __slots__ = ()

    @classmethod
    def joined(cls, parts: Iterable[str], between: str = "") -> Self:
        """One piece of HTML from several; strings that aren't HTML are escaped.

        Args:
            between: HTML that goes between them.
        """
        return cls(between.join(_finished(part) for part in parts))


@dataclass(frozen=True)
class Section:
    """A part of a page with a heading.

    Attributes:
        anchor: a word, its address within the page.
        title: in a few words, for the heading and the contents.
        body: its HTML.
    """

    anchor: str
    title: str
    body: Markup


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        content: a text, or HTML.
        sort: what the column is sorted by; None = the content, which then is a text.
    """

    content: str
    sort: float | str | None = None


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: of a few words.
        is_number: whether its cells are set to the right.
    """

    title: str
    is_number: bool = False


def element(name: str, *content: str, **attributes: str | float | None) -> Markup:
    """An HTML or SVG element; texts and values of attributes are escaped.

    Args:
        content: `Markup` is taken as it is.
        attributes: ``class_`` is written as class, ``aria_label`` as aria-label; one that is
            None is left out.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_escaped(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{written}>{Markup.joined(content)}</{name}>")


def code(name: Any) -> Markup:
    """A name of the program's own, which may be broken into lines behind its dots."""
    return element("code", _breakable(str(name)))


def number(value: Any, form: str = ".4g") -> str:
    """A number as text: a dash for None, words for what isn't finite.

    Args:
        form: how a finite one is written; a very large one gets ".4g".
    """
    if value is None:
        return NOTHING
    value = float(value)
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    text = format(value, form if abs(value) < (1e15 if "," in form else 1e7) else ".4g")
    if float(text.replace(",", "")) == 0:
        text = text.removeprefix("-")
    return re.sub(r"e\+0*", "e", re.sub(r"^-", "−", text))


def number_cell(value: Any, form: str = ".4g") -> Cell:
    """A cell with a number, sorted by it; None gives an empty one.

    What is empty or NaN comes last in any order.
    """
    if value is None:
        return Cell("", "")
    return Cell(number(value, form), "" if math.isnan(value) else float(value))


def table(
    columns: Sequence[Column],
    rows: Iterable[Sequence[Cell | str]],
    *,
    caption: str,
    is_long: bool = False,
) -> Markup:
    """A table whose first column of text names the rows; on a phone each row becomes a card.

    Args:
        rows: as many cells each as there are columns.
        caption: what the table shows.
        is_long: whether it can be sorted, and shows twelve rows until asked for more.
    """
    name = next((i for i, column in enumerate(columns) if not column.is_number), 0)
    head = element(
        "tr",
        *(
            element("th", column.title, scope="col", role="columnheader", class_=_side(column))
            for column in columns
        ),
        role="row",
    )
    lines = [
        element(
            "tr",
            *(
                _cell(column, cell, is_name=index == name)
                for index, (column, cell) in enumerate(zip(columns, row, strict=True))
            ),
            role="row",
        )
        for row in rows
    ]
    long = {"data_sortable": "", "data_long": ""} if is_long and len(lines) > 2 else {}
    # The roles are those of the elements; browsers drop them where the style makes blocks of them.
    return element(
        "table",
        element("caption", caption),
        element("thead", head, role="rowgroup"),
        element("tbody", *lines, role="rowgroup"),
        role="table",
        class_="stack",
        **long,
    )


def facts(pairs: Iterable[tuple[str, str]]) -> Markup:
    """Names and what they are, one a line."""
    return element("dl", *(Markup.joined([element("dt", k), element("dd", v)]) for k, v in pairs))


def write_page(path: Path, title: str, lead: Markup, sections: Sequence[Section]) -> None:
    """Write one self-contained page: a title, the lead, links to the sections, the sections.

    The page asks for nothing from outside and says so to the browser, which then refuses it.

    Args:
        path: its folder is made if it is missing.
        lead: what a reader should know who reads no further.

    Raises:
        HatError: the disk doesn't take it; an older file of that name is left as it was.
    """
    text = _page(title, lead, sections)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, "utf-8")
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):  # it may not be there, nor its folder
            partial.unlink()
        raise HatError(f"{path}: cannot write it: {error.strerror or error}") from error


def _page(title: str, lead: Markup, sections: Sequence[Section]) -> str:
    script = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{script}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    links = [
        element("li", element("a", section.title, href=f"#{section.anchor}"))
        for section in sections
    ]
    parts = [
        element(
            "section",
            element("h2", section.title, id=f"{section.anchor}-title"),
            section.body,
            id=section.anchor,
            aria_labelledby=f"{section.anchor}-title",
        )
        for section in sections
    ]
    heading = element("header", element("h1", _breakable(title)), lead)
    contents = element("nav", element("ul", *links), aria_label="Contents") if links else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_escaped(policy)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'  # else a browser asks a server for one
        f"{element('title', title)}\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"{heading}\n{contents}\n{element('main', Markup.joined(parts, chr(10)))}\n"
        f"<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def _cell(column: Column, cell: Cell | str, *, is_name: bool) -> Markup:
    cell = cell if isinstance(cell, Cell) else Cell(cell)
    kind = {"scope": "row", "role": "rowheader"} if is_name else {"role": "cell"}
    return element(
        "th" if is_name else "td",
        cell.content,
        class_=_side(column),
        data_label=column.title,
        data_sort=_for_script(cell.sort),
        **kind,
    )


def _for_script(sort: float | str | None) -> float | str | None:
    """What the sorting script reads as the same number."""
    if isinstance(sort, float) and math.isinf(sort):
        return "Infinity" if sort > 0 else "-Infinity"
    return sort


def _breakable(text: str) -> Markup:
    return Markup.joined(re.split(r"(?<=[._/])", text), "<wbr>")


def _side(column: Column) -> str | None:
    return "number" if column.is_number else None


def _finished(part: str) -> str:
    return part if isinstance(part, Markup) else _escaped(part)


def _escaped(text: str) -> str:
    """A text in which nothing is taken for markup, and nothing that UTF-8 or HTML can't hold."""
    return html.escape(_NOT_TEXT.sub("\ufffd", text))
