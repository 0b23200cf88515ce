"""Pages of the site that are made from the code when it is built, so that they can't drift."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from sphinx.application import Sphinx

from hat_docs.commands import commands_page
from hat_docs.configs import configs_page
from hat_docs.parts import parts_page
from hat_docs.search import Search
from hat_docs.session import SessionLexer

MARK = "The rest of this page is made from the code when the site is built: `make docs`."
EMPTY_CELL = r"<th[^>]*><p></p></th>"
LONG_WORD = re.compile(r'(?<=<span class="pre">)[^<]{25,}(?=</span>)')
MENDED = [
    (rf"<thead>\s*<tr[^>]*>(?:{EMPTY_CELL}\s*)+</tr>\s*</thead>", ""),
    (EMPTY_CELL, "<td></td>"),  # Markdown has no table without heads
    (r'<span class="pre">~(?:\w+\.)*(?=\w)', '<span class="pre">'),  # ~pathlib.Path is Path
    (r'<span class="pre">(?=[^<]{1,24}</span>)', '<span class="pre short">'),
    (r"(</strong>|</a>|</em>\)) -- ", r"\1: "),
    (">Variables<", ">Attributes<"),
]
"""What is mended in every page: pattern, replacement."""

PAGES: dict[str, Callable[[], str]] = {
    "reference/cli": commands_page,
    "reference/parts": parts_page,
    "reference/shipped-configs": configs_page,
}


def setup(app: Sphinx) -> dict[str, Any]:
    """Join Sphinx: fill the generated pages, and mend what a reader stumbles over."""
    app.add_lexer("console", SessionLexer)
    app.add_search_language(Search)
    app.connect("source-read", _fill)
    app.connect("env-get-outdated", _always_outdated)
    app.connect("html-page-context", _mend)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _fill(_app: Sphinx, page: str, source: list[str]) -> None:
    """Put the generated Markdown in the place of the mark, and lead to the example that ran."""
    if page in PAGES:
        head, mark, tail = source[0].partition(MARK)
        if not mark:
            raise ValueError(f"{page}: lacks the line {MARK}")
        source[0] = f"{head}{PAGES[page]()}{tail}"
    # A code host shows the example's file; the site has it with its output.
    source[0] = source[0].replace("examples/python_api.py)", "gallery/python_api.rst)")


def _always_outdated(*_: object) -> Sequence[str]:
    """Generated pages depend on all of the code: they are made in every build."""
    return list(PAGES)


def _mend(_app: Sphinx, page: str, _template: str, context: dict[str, Any], _tree: object) -> None:
    """Name a page's language, drop empty heads of tables, say where words of code may break."""
    if "/zh/" in page:
        context["language"] = "zh-CN"
    if "body" in context:
        body = context["body"]
        for pattern, replacement in MENDED:
            body = re.sub(pattern, replacement, body)
        context["body"] = LONG_WORD.sub(_breakable, body)


def _breakable(word: re.Match[str]) -> str:
    """A long name that may be broken behind its separators."""
    return re.sub(r"(::|[/_])(?=\w)", r"\1<wbr>", word[0])
