"""JSON as its standard has it: no key twice, no NaN, and errors that say where."""

import json
import math
from collections import Counter
from typing import Any

from hatcli.data.packers._files import shown
from hatcli.errors import DataError

_MAX_DEPTH = 30  # of what a record or the metadata can hold


def parse_json(text: str, where: str) -> Any:
    """What a JSON text says; NaN and Infinity are taken, for `check_finite` to name.

    Raises:
        DataError: it can't be read, or an object has one key twice.
    """
    value, _ = parse_at(text, 0, where)
    return value


def check_finite(value: object, path: str, where: str, depth: int = 1) -> None:
    """Refuse NaN and infinite numbers, however they were written, and deep nesting.

    Args:
        value: what a JSON text says.
        path: of the value in the file.
        where: what messages call the file.
        depth: of the value among those that hold it.
    """
    if depth > _MAX_DEPTH:
        raise DataError(f"{where}: nested deeper than {_MAX_DEPTH} levels")
    if isinstance(value, float):
        if not math.isfinite(value):
            raise DataError(f"{where}: {path} is {value}")
    elif isinstance(value, dict):
        for key, item in value.items():
            name = shown(key[:80])
            check_finite(item, f"{path}.{name}" if path else name, where, depth + 1)
    elif isinstance(value, list):
        # Almost all lists are long ones of finite numbers, which one pass in C tells.
        if all(type(item) is float for item in value) and all(map(math.isfinite, value)):
            return
        for place, item in enumerate(value):
            check_finite(item, f"{path}[{place}]", where, depth + 1)


def parse_at(text: str, position: int, where: str) -> tuple[Any, int]:
    """One value, and where in the text it ends.

    Raises:
        DataError: as in `parse_json`.
    """
    try:
        return _DECODER.raw_decode(text, position)
    except _TwiceError as error:
        raise DataError(f"{where}: holds the key {error.args[0][:80]!r} twice") from error
    except RecursionError as error:
        raise DataError(f"{where}: nested too deeply") from error
    except ValueError as error:  # JSONDecodeError, or an integer of thousands of digits
        raise DataError(f"{where}: not JSON ({str(error)[:200]})") from error


def short(value: object) -> str:
    """A foreign value for a message."""
    if isinstance(value, dict) or (isinstance(value, list) and not all(map(_is_plain, value))):
        return f"a {type(value).__name__}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _is_plain(value: object) -> bool:
    return not isinstance(value, dict | list)


class _TwiceError(Exception):
    """A key stands twice in an object."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise _TwiceError(counts.most_common(1)[0][0])
    return entries


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)
