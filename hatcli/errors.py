"""Mistakes and faults that a user can fix; anything else that is raised is our bug.

HatError            1   failed, explained
├── UsageError      2   a wrong argument, a missing source, an unknown split
│   └── ConfigError     a wrong configuration
├── DataError       1   a damaged or illegal image, label, archive or record
│   └── PackError       a pack that can't be opened or trusted
├── CheckpointError 1   a checkpoint that can't be loaded or doesn't fit
├── ModelFileError  1   an ONNX file that can't be used
├── CheckFailed     3   a check found damage, a difference, or a metric below its bound
├── LockedError    75   another run works here
├── ToldElsewhere       of several processes, one that ends with the code of another's error
└── StoppedBySignal     130 after SIGINT, 143 after SIGTERM, both after saving

The second column is the exit code of the command line.
"""

import difflib
from collections.abc import Iterable


def start_of(data: bytes) -> str:
    """How a file begins: "starts with 'hello'", or "starts with the bytes 89 50 4e 47"."""
    if data.isascii() and data.decode("ascii").isprintable():
        return f"starts with {data.decode('ascii')!r}"
    return f"starts with the bytes {data.hex(' ')}"


class HatError(Exception):
    """An expected failure: what is wrong and where, in one line, and how to mend it.

    Args:
        message: "where: what is wrong" without a full stop, in one line.
        hint: what to do about it; shown as a line of its own.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(HatError):
    """A wrong argument, a missing source or an unknown choice."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration that can't be read, or names something that doesn't exist."""


class DataError(HatError):
    """An image, a label, an archive or a record that is damaged or not legal."""


class PackError(DataError):
    """A pack that can't be opened, or can't be trusted."""


class CheckpointError(HatError):
    """A checkpoint that can't be loaded or doesn't fit the model."""


class ModelFileError(HatError):
    """An ONNX file that can't be used."""


class CheckFailed(HatError):  # noqa: N818 - reads as the verdict that it is
    """A check found damage, a difference, or a metric below its bound."""

    exit_code = 3


class LockedError(HatError):
    """Another run works in this place."""

    exit_code = 75


class ToldElsewhere(HatError):  # noqa: N818 - what happened
    """An error that another process shows; this one ends with the same code, without a word."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("another process tells why")
        self.exit_code = exit_code


class StoppedBySignal(HatError):  # noqa: N818 - not an error of anyone
    """A signal asked the job to stop; what was done is saved.

    Attributes:
        is_agreed: of several processes, whether all stop at the same place.
    """

    def __init__(
        self,
        signal_number: int,
        message: str,
        hint: str | None = None,
        *,
        is_agreed: bool = False,
    ) -> None:
        super().__init__(message, hint)
        self.exit_code = 128 + signal_number
        self.is_agreed = is_agreed


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """A hint: the nearest of the choices, or all of them."""
    choices = list(choices)
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    if not near:  # case and underscores are what people get wrong
        plain = {choice.lower().replace("_", ""): choice for choice in choices}
        near = difflib.get_close_matches(name.lower().replace("_", ""), plain, n=1, cutoff=0.6)
        near = [plain[found] for found in near]
    return f"did you mean {near[0]!r}?" if near else f"choose from: {', '.join(choices)}"
