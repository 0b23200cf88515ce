"""Pages of the site that are made from the code when it is built, so that they can't drift."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from sphinx.application import Sphinx

from hat_docs.commands import commands_page
from hat_docs.configs import configs_page
from hat_docs.parts import parts_page
from hat_docs.session import SessionLexer

MARK = "The rest of this page is made from the code when the site is built: `make docs`."
EMPTY_HEAD = re.compile(r"<thead>\s*<tr[^>]*>(?:<th[^>]*><p></p></th>\s*)+</tr>\s*</thead>")
EMPTY_CELL = re.compile(r"<th[^>]*><p></p></th>")

PAGES: dict[str, Callable[[], str]] = {
    "reference/cli": commands_page,
    "reference/parts": parts_page,
    "reference/shipped-configs": configs_page,
}


def setup(app: Sphinx) -> dict[str, Any]:
    """Join Sphinx: fill the generated pages, and mend what a screen reader stumbles over."""
    app.add_lexer("console", SessionLexer)
    app.connect("source-read", _fill)
    app.connect("env-get-outdated", _always_outdated)
    app.connect("html-page-context", _for_screen_readers)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _fill(_app: Sphinx, page: str, source: list[str]) -> None:
    """Put the generated Markdown in the place of the mark."""
    if page in PAGES:
        head, mark, tail = source[0].partition(MARK)
        if not mark:
            raise ValueError(f"{page}: lacks the line {MARK}")
        source[0] = f"{head}{PAGES[page]()}{tail}"


def _always_outdated(*_: object) -> Sequence[str]:
    """Generated pages depend on all of the code: they are made in every build."""
    return list(PAGES)


def _for_screen_readers(
    _app: Sphinx, page: str, _template: str, context: dict[str, Any], _tree: object
) -> None:
    """Name the language of a page, and take away the empty heads that Markdown tables need."""
    if "/zh/" in page:
        context["language"] = "zh-CN"
    if "body" in context:
        context["body"] = EMPTY_CELL.sub("<td></td>", EMPTY_HEAD.sub("", context["body"]))
