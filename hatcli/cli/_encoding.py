"""What is printed where there is no Unicode: the nearest of ASCII."""

import codecs
import os
import sys
from typing import TextIO

NEAREST = {
    "·": "-",
    "…": "...",
    "–": "-",
    "−": "-",
    "×": "x",
    "→": "->",
    "±": "+-",
    "━": "#",
    "─": "-",
}  # fmt: skip

_HANDLER = "hat-nearest"


def writable(text: str, encoding: str) -> str:
    """A text as a stream of this encoding will show it."""
    return text.encode(encoding, _HANDLER).decode(encoding)


def prepare_streams() -> None:
    """Let stdout and stderr take any text: names in other scripts come as escapes if need be.

    A terminal that is dumb, or whose locale is C or POSIX, gets ASCII. Python itself would write
    UTF-8 there.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            if _is_plain(stream):
                stream.reconfigure(encoding="ascii", errors=_HANDLER)
            else:
                stream.reconfigure(errors=_HANDLER)


def _is_plain(stream: TextIO) -> bool:
    names = ("LC_ALL", "LC_CTYPE", "LANG")  # the first that is set counts
    locale = next((text for name in names if (text := os.environ.get(name))), "")
    return stream.isatty() and (locale in ("C", "POSIX") or os.environ.get("TERM") == "dumb")


def _nearest(error: UnicodeError) -> tuple[str, int]:
    """What an encoder writes for signs that it hasn't."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    signs = error.object[error.start : error.end]
    escaped = [NEAREST.get(s) or s.encode("ascii", "backslashreplace").decode() for s in signs]
    return "".join(escaped), error.end


codecs.register_error(_HANDLER, _nearest)
