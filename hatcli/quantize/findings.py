"""What a pass noticed about one layer and a user should know."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One remark about one layer; ``str`` makes it a line.

    Attributes:
        layer: its name in the model, e.g. "stem.conv".
        text: what was seen, and what follows from it, in one line without a full stop.
    """

    layer: str
    text: str

    def __str__(self) -> str:
        return f"{self.layer}: {self.text}"
