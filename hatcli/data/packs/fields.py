"""The fields of a msgpack map, one after the other, with views instead of copies of large ones."""

from collections.abc import Callable, Mapping
from typing import Any

import msgpack

from hatcli.errors import DataError

TakeExt = Callable[[int, memoryview], Any]

_FIRST_LOOK_BYTES = 512  # most values that aren't views are shorter

# First byte of a kind of value -> how many bytes say its length, or hold the number itself.
_MAPS = {0xDE: 2, 0xDF: 4}
_BINS = {0xC4: 1, 0xC5: 2, 0xC6: 4}
_EXTS = {0xC7: 1, 0xC8: 2, 0xC9: 4}
_UINTS = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}


class FieldWalk:
    """Reads a map; its values of type bytes are views, and so is what its ext types are made of.

    Args:
        payload: a map and nothing else.
        take_ext: makes a value of an ext type's code and a view of its body.
        unpacking: how msgpack unpacks all other values, as for ``msgpack.unpackb``.
    """

    def __init__(
        self, payload: memoryview, take_ext: TakeExt, unpacking: Mapping[str, Any]
    ) -> None:
        self._payload = payload
        self._take_ext = take_ext
        self._unpacking = unpacking
        self._position = 0

    def pairs(self, most: int) -> list[tuple[Any, Any]]:
        """Keys and values in order.

        Args:
            most: how many there may be.

        Raises:
            DataError: no map, cut, followed by other bytes, or more pairs than that.
            ValueError: what ``msgpack`` raises for damaged values.
        """
        first = self._first_byte()
        if first in _MAPS:
            count = self._number(_MAPS[first])
        elif 0x80 <= first <= 0x8F:
            count = first & 0x0F
            self._position += 1
        else:
            raise DataError(f"not a sample (starts with {first:#x})")
        if count > most:
            raise DataError(f"more than {most} items in one sample")
        pairs = []
        for _ in range(count):
            key = self._copied()
            pairs.append((key, self._value()))
        if self._position != len(self._payload):
            raise DataError("not a sample (followed by other bytes)")
        return pairs

    def _value(self) -> Any:
        first = self._first_byte()
        if first in _BINS:
            return self._take(self._number(_BINS[first]))
        if first in _EXTS:
            size = self._number(_EXTS[first])
            code = int.from_bytes(self._take(1), signed=True)
            return self._take_ext(code, self._take(size))
        return self._copied()

    def _copied(self) -> Any:
        """The next value, whatever it is."""
        first = self._first_byte()
        if first <= 0x7F:
            self._position += 1
            return first
        if 0xA0 <= first <= 0xBF:
            self._position += 1
            return str(self._take(first & 0x1F), "utf-8")
        if first in _UINTS:
            return self._number(_UINTS[first])
        return self._unpacked()

    def _unpacked(self) -> Any:
        """The next value by way of msgpack, which is fed until it has enough."""
        unpacker = msgpack.Unpacker(**self._unpacking)
        fed, size = self._position, _FIRST_LOOK_BYTES
        while fed < len(self._payload):
            unpacker.feed(self._payload[fed : fed + size])
            fed += size
            size *= 4
            try:
                value = unpacker.unpack()
            except msgpack.OutOfData:
                continue
            self._position += unpacker.tell()
            return value
        raise DataError("not a sample (cut)")

    def _first_byte(self) -> int:
        if self._position >= len(self._payload):
            raise DataError("not a sample (cut)")
        return self._payload[self._position]

    def _number(self, size: int) -> int:
        """The number behind a first byte."""
        self._position += 1
        return int.from_bytes(self._take(size))

    def _take(self, size: int) -> memoryview:
        end = self._position + size
        if end > len(self._payload):
            raise DataError("not a sample (cut)")
        view = self._payload[self._position : end]
        self._position = end
        return view
