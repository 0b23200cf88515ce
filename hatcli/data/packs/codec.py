"""One sample as bytes: msgpack with a closed set of types, so that reading never runs code.

Stored are None, bool, int, float, str, bytes, list, dict with str keys, numpy arrays (msgpack
ext type 1) and tensors as typed buffers (ext type 2). The body of both ext types is the msgpack
list [dtype, shape, codec] followed by the numbers in C order, little endian. Everything else is
refused when writing and when reading.
"""

import math
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np
import zstandard

from hatcli.data.packs.fields import FieldWalk
from hatcli.data.packs.frame import MAX_PAYLOAD_BYTES
from hatcli.data.packs.strips import RawRows, Strips, encode_strips
from hatcli.errors import DataError

ZSTD_LEVEL = 13  # of label maps: 0.64 times the bytes of a PNG, decoded 20 times faster
MAX_DECODED_BYTES = 2 * MAX_PAYLOAD_BYTES  # all arrays of a sample together
MAX_DIMS = 8

_EXT_ARRAY, _EXT_TENSOR = 1, 2
_RAW, _ZLIB, _ZSTD, _STRIPS = 0, 1, 2, 3
_DTYPES = ("|b1", "|u1", "|i1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", "<f2", "<f4", "<f8")
_BFLOAT16 = "bf16"  # a tensor only; numpy has no such type
_MAX_ITEMS = 2**20  # list items and map entries of a sample together
_MAX_TEXT_BYTES = 2**20
_MAX_DEPTH = 32
_ARRAY_HEADER_BYTES = 96  # 8 sizes of 9 bytes, dtype, codec
_INT_RANGE = range(-(2**63), 2**64)


@dataclass(frozen=True, eq=False)
class TensorData:
    """The numbers of a tensor, without the library that makes one of them.

    Attributes:
        array: C order; of a "bf16" tensor its bits as uint16.
        dtype: "bf16", or the numpy dtype such as "<f4".
    """

    array: np.ndarray
    dtype: str


def encode(
    sample: Mapping[str, object],
    *,
    zstd: Collection[str] = (),
    strips: Collection[str] = (),
) -> bytes:
    """A sample as bytes.

    Args:
        sample: field name -> value of one of the types above.
        zstd: names of the fields whose arrays are compressed; label maps, not photographs.
        strips: names of the fields whose arrays are uint8 images, to be stored in strips.

    Raises:
        DataError: a value can't be stored; the message names its field.
    """
    codecs = {**dict.fromkeys(zstd, _ZSTD), **dict.fromkeys(strips, _STRIPS)}
    plain = {
        _text(name, "a field name"): _storable(value, f"field {name!r}", codecs.get(name, _RAW), 1)
        for name, value in sample.items()
    }
    try:
        return msgpack.packb(plain, use_bin_type=True, strict_types=True)
    except ValueError as error:  # more than 4 GiB in one value
        raise DataError(f"sample can't be stored: {error}") from error


def decode(payload: bytes | memoryview, *, views: bool = False) -> dict[str, Any]:
    """The sample that `encode` made bytes of; its arrays own their writable memory.

    Args:
        payload: the bytes.
        views: large fields aren't copied and are valid as long as the payload is: bytes are
            memoryviews into it, arrays in strips are `Strips`, and uint8 arrays of shape
            (H, W, 3) that are stored as they are, `RawRows`. Damage within strips is then found
            when they are read.

    Raises:
        DataError: the bytes aren't such a sample, whatever else they are.
    """
    budget = _Budget(views=views)
    unpacking = {
        "raw": False,
        "strict_map_key": True,
        "list_hook": budget.take_list,
        "object_pairs_hook": budget.take_map,
        "ext_hook": budget.take_ext,
        "max_str_len": _MAX_TEXT_BYTES,
        "max_bin_len": MAX_PAYLOAD_BYTES,
        "max_ext_len": MAX_PAYLOAD_BYTES,
        "max_array_len": _MAX_ITEMS,
        "max_map_len": _MAX_ITEMS,
    }
    try:
        if views:
            walk = FieldWalk(memoryview(payload), budget.take_ext, unpacking)
            return budget.take_map(walk.pairs(_MAX_ITEMS))
        sample = msgpack.unpackb(payload, **unpacking)
    except DataError:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError, MemoryError) as error:
        raise DataError(f"not a sample ({type(error).__name__}: {error})") from error
    if type(sample) is not dict:
        raise DataError(f"not a sample but a {type(sample).__name__}")
    return sample


def _storable(value: object, where: str, codec: int, depth: int) -> object:
    """The value with arrays turned to ext types, or a DataError that says where it stands."""
    if depth > _MAX_DEPTH:
        raise DataError(f"{where} is nested deeper than {_MAX_DEPTH} levels")
    kind = type(value)
    if value is None or kind in (bool, float, bytes):
        return value
    if kind is int and value in _INT_RANGE:
        return value
    if kind is str:
        return _text(value, where)
    if isinstance(value, list) and kind is list:
        return [
            _storable(item, f"{where}[{index}]", codec, depth + 1)
            for index, item in enumerate(value)
        ]
    if isinstance(value, dict) and kind is dict:
        return {
            _text(key, f"a key of {where}"): _storable(item, f"{where}.{key}", codec, depth + 1)
            for key, item in value.items()
        }
    if isinstance(value, np.ndarray) and kind is np.ndarray:
        return msgpack.ExtType(_EXT_ARRAY, _array_body(value, None, where, codec))
    if isinstance(value, TensorData):
        body = _array_body(value.array, value.dtype, where, codec)
        return msgpack.ExtType(_EXT_TENSOR, body)
    what = "holds an integer beyond 64 bits" if kind is int else f"has type {_type_name(kind)}"
    raise DataError(f"{where} {what}, which cannot be stored")


def _text(value: object, where: str) -> str:
    if type(value) is not str:
        raise DataError(f"{where} has type {_type_name(type(value))}; only str can be stored")
    try:
        size = len(value.encode())
    except UnicodeEncodeError as error:
        raise DataError(f"{where} isn't valid Unicode: {value!r}") from error
    if size > _MAX_TEXT_BYTES:
        raise DataError(f"{where} is a text of {size} bytes; limit {_MAX_TEXT_BYTES}")
    return value


def _type_name(kind: type) -> str:
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


def _array_body(array: np.ndarray, tag: str | None, where: str, codec: int) -> bytes:
    stored = array.dtype.newbyteorder("<").str
    if stored not in _DTYPES:
        raise DataError(f"{where} has dtype {array.dtype}, which cannot be stored")
    if tag is not None and tag != stored and not (tag == _BFLOAT16 and stored == "<u2"):
        raise DataError(f"{where} is tagged {tag} but has dtype {array.dtype}")
    if array.ndim > MAX_DIMS:
        raise DataError(f"{where} has {array.ndim} dimensions; limit {MAX_DIMS}")
    if array.nbytes > MAX_PAYLOAD_BYTES:
        limit = MAX_PAYLOAD_BYTES / 2**20
        raise DataError(f"{where} is {array.nbytes / 2**20:.4g} MiB; limit {limit:.4g} MiB")
    if codec == _STRIPS:
        numbers = _strips(array, tag, where)
    else:
        numbers = array.astype(stored, order="C", copy=False).tobytes()
    if codec == _ZSTD:
        numbers = zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(numbers)
    return msgpack.packb([tag or stored, list(array.shape), codec]) + numbers


def _strips(array: np.ndarray, tag: str | None, where: str) -> bytes:
    if tag is not None:
        raise DataError(f"{where} is a tensor, which can't be stored in strips")
    try:
        return encode_strips(array)
    except DataError as error:
        raise DataError(f"{where} can't be stored in {error}") from error


class _Budget:
    """What one sample may still ask for; turns msgpack's pieces into values of the closed set."""

    def __init__(self, *, views: bool) -> None:
        self._views = views
        self._items = _MAX_ITEMS
        self._bytes = MAX_DECODED_BYTES

    def take_list(self, items: list[Any]) -> list[Any]:
        self._spend_items(len(items))
        for item in items:
            _check_known(item)
        return items

    def take_map(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        self._spend_items(len(pairs))
        entries = dict(pairs)
        if len(entries) != len(pairs):
            raise DataError("a map holds one key twice")
        for key, value in pairs:
            if type(key) is not str:
                raise DataError(f"a map has the key {key!r}; keys must be text")
            _check_known(value)
        return entries

    def take_ext(
        self, code: int, body: bytes | memoryview
    ) -> np.ndarray | TensorData | Strips | RawRows:
        if code not in (_EXT_ARRAY, _EXT_TENSOR):
            raise DataError(f"unknown ext type {code}")
        tag, shape, codec, start = _array_header(body)
        dtype = _allowed_dtype(tag, code)
        size = math.prod(shape) * dtype.itemsize
        self._bytes -= size
        if self._bytes < 0:
            raise DataError(f"arrays of more than {MAX_DECODED_BYTES // 2**20} MiB in one sample")
        stored = memoryview(body)[start:]
        if codec == _STRIPS:
            if code != _EXT_ARRAY or tag != "|u1":
                raise DataError(f"strips hold the dtype {tag!r}, which is not allowed")
            strips = Strips(stored, tuple(shape))
            return strips if self._views else strips.rows(0, strips.height)
        numbers = _decompress(stored, codec, size)
        if self._views and codec == _RAW and code == _EXT_ARRAY and _is_image(tag, shape):
            return RawRows(np.frombuffer(numbers, dtype).reshape(shape))
        array = np.frombuffer(bytearray(numbers), dtype=dtype).reshape(shape)
        if tag == "|b1" and array.size and array.view(np.uint8).max() > 1:
            raise DataError("array of booleans holds other values")
        return array if code == _EXT_ARRAY else TensorData(array, tag)

    def _spend_items(self, count: int) -> None:
        self._items -= count
        if self._items < 0:
            raise DataError(f"more than {_MAX_ITEMS} items in one sample")


def _check_known(value: object) -> None:
    if isinstance(value, msgpack.Timestamp):  # msgpack makes these without asking
        raise DataError("unknown ext type -1")


def _allowed_dtype(tag: str, code: int) -> np.dtype[Any]:
    if tag == _BFLOAT16 and code == _EXT_TENSOR:
        return np.dtype("<u2")
    if tag in _DTYPES:
        return np.dtype(tag)
    raise DataError(f"array has the dtype {tag!r}, which is not allowed")


def _is_image(tag: str, shape: list[int]) -> bool:
    return tag == "|u1" and len(shape) == 3 and shape[2] == 3 and min(shape) > 0


def _array_header(body: bytes | memoryview) -> tuple[str, list[int], int, int]:
    """dtype, shape, codec, and where the numbers start."""
    unpacker = msgpack.Unpacker(
        max_buffer_size=_ARRAY_HEADER_BYTES,
        max_array_len=MAX_DIMS,
        max_str_len=8,
        max_bin_len=0,
        max_map_len=0,
        max_ext_len=0,
    )
    unpacker.feed(body[:_ARRAY_HEADER_BYTES])
    try:
        header = unpacker.unpack()
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise DataError(f"array header is damaged ({type(error).__name__})") from error
    if type(header) is not list or [type(part) for part in header] != [str, list, int]:
        raise DataError(f"array header is {header!r}")
    tag, shape, codec = header
    if not all(type(side) is int and side >= 0 for side in shape):
        raise DataError(f"array has the shape {shape!r}")
    return tag, shape, codec, unpacker.tell()


def _decompress(stored: memoryview, codec: int, size: int) -> bytes | memoryview:
    """Exactly ``size`` bytes, or a DataError; never allocates more than that."""
    if codec == _RAW:
        plain: bytes | memoryview = stored
    elif codec == _ZLIB:
        plain = _inflate(stored, size)
    elif codec == _ZSTD:
        plain = _unzstd(stored, size)
    else:
        raise DataError(f"array codec {codec} is not known to this hat")
    if len(plain) != size:
        raise DataError(f"array needs {size} bytes, has {len(plain)}")
    return plain


def _inflate(stored: memoryview, size: int) -> bytes:
    inflater = zlib.decompressobj()
    try:
        plain = inflater.decompress(stored, size + 1)
    except zlib.error as error:
        raise DataError(f"array is damaged (zlib: {error})") from error
    if len(plain) <= size and (not inflater.eof or inflater.unused_data):
        raise DataError("array is damaged (zlib: cut, or followed by other bytes)")
    return plain


def _unzstd(stored: memoryview, size: int) -> bytes:
    try:
        declared = zstandard.frame_content_size(stored)
        if declared != size:  # the library trusts this number when it allocates
            raise DataError(f"array needs {size} bytes, has {declared}")
        return zstandard.ZstdDecompressor().decompress(stored, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise DataError(f"array is damaged (zstd: {error})") from error
