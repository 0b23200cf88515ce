"""How the search index splits text: Chinese has no blanks, so that its words are pairs of signs."""

import re

from sphinx.search.en import SearchEnglish

RUN = re.compile(r"[\u4e00-\u9fff]+|[^\W\u4e00-\u9fff]+")


class Search(SearchEnglish):
    """English words, and each two neighbours among Chinese signs; a query is split the same way."""

    js_splitter_code = r"""
var splitQuery = (query) =>
  query
    .split(/[^\p{Letter}\p{Number}_]+/u)
    .flatMap((word) => word.split(/([\u4e00-\u9fff]+)/))
    .flatMap((run) =>
      /^[\u4e00-\u9fff]{3,}$/.test(run)
        ? Array.from({ length: run.length - 1 }, (_, at) => run.slice(at, at + 2))
        : [run],
    )
    .filter((term) => term);
"""

    def split(self, input: str) -> list[str]:  # noqa: A002 - the name is Sphinx's
        """Words of a text, for the index."""
        return [word for run in RUN.findall(input) for word in _words(run)]


def _words(run: str) -> list[str]:
    if len(run) < 3 or not "\u4e00" <= run[0] <= "\u9fff":
        return [run]
    return [run[at : at + 2] for at in range(len(run) - 1)]
