"""hat config diff: which entries of two configs differ."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hatcli.config import KEYS, Config

ABSENT = object()
"""In place of the value of an entry that a config doesn't have."""


@dataclass(frozen=True)
class Difference:
    """One entry that differs.

    Attributes:
        key: its path, as an override takes it, e.g. "train.transforms.0.height".
        first: its value in the first config, or `ABSENT`; so for ``second``.
    """

    key: str
    first: Any
    second: Any


def differences(first: Config, second: Config) -> list[Difference]:
    """The entries that differ, in the order of a config's names.

    Lists of plain values are compared as a whole, other lists entry by entry.
    """
    ours, theirs = dict(_entries(first.values)), dict(_entries(second.values))
    names = list(KEYS)
    keys = sorted({**ours, **theirs}, key=lambda key: names.index(key.partition(".")[0]))
    return [
        Difference(key, ours.get(key, ABSENT), theirs.get(key, ABSENT))
        for key in keys
        if not _same(ours.get(key, ABSENT), theirs.get(key, ABSENT))
    ]


def _entries(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every plain value, list of plain values and empty dict below a value, by its path."""
    children: dict[str, Any] = {}
    if isinstance(value, Mapping):
        children = dict(value)
    elif isinstance(value, list | tuple) and any(map(_has_entries, value)):
        children = {str(position): item for position, item in enumerate(value)}
    if not children:
        yield path, value
    for key, item in children.items():
        yield from _entries(item, f"{path}.{key}" if path else key)


def _has_entries(value: Any) -> bool:
    return isinstance(value, Mapping | list | tuple)


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, list | tuple) and isinstance(second, list | tuple):
        return len(first) == len(second) and all(map(_same, first, second))
    if isinstance(first, bool) or isinstance(second, bool):
        return first is second
    return bool(first == second)
