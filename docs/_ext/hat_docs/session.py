"""How commands and their output are coloured: no word of a command means anything to a shell."""

from typing import ClassVar

from pygments.lexer import RegexLexer, bygroups
from pygments.token import Comment, Generic, Text, Whitespace


class SessionLexer(RegexLexer):  # type: ignore[misc]  # pygments has no types
    """Lines that begin with "$ " are typed, up to a remark behind " # "; all others are printed."""

    name = "Commands and their output"
    aliases: ClassVar[list[str]] = ["console"]
    tokens: ClassVar = {
        "root": [
            (r"^(\$ )(.*?)(\s+# .*)?(\n)", bygroups(Generic.Prompt, Text, Comment, Whitespace)),
            (r".*\n", Generic.Output),
        ]
    }
