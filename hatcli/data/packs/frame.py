"""The 12 bytes in front of every record, and the checksum that makes damage an error.

    offset  bytes
    0       2      magic "HR"
    2       1      version of this frame, 1
    3       1      flags: bits 0-1 compression of the payload (0 none, 1 zlib), bits 2-3 kind of
                   check (0 CRC32), the others 0
    4       4      length of the payload in the record, unsigned, little endian
    8       4      CRC32 over the key, bytes 0 to 7 and the payload
    12             payload

The key is part of the checksum, so that a record that moved to another key is found out.
"""

import struct
import zlib

from hatcli.errors import DataError

MAX_PAYLOAD_BYTES = 256 * 2**20  # one record, so that a damaged length can't ask for more

_MAGIC = b"HR"
_VERSION = 1
_ZLIB = 0b01
_HEAD = struct.Struct("<2sBBI")
_CRC = struct.Struct("<I")
_SIZE = _HEAD.size + _CRC.size


def seal(key: bytes, payload: bytes) -> bytes:
    """A payload with its frame.

    Raises:
        DataError: the payload is larger than a record may be.
    """
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise DataError(
            f"sample is {_mib(len(payload))} MiB; limit {_mib(MAX_PAYLOAD_BYTES)} MiB",
            "store smaller images or fewer arrays in one sample",
        )
    head = _HEAD.pack(_MAGIC, _VERSION, 0, len(payload))
    return b"".join((head, _CRC.pack(_checksum(key, head, payload)), payload))


def unseal(key: bytes, record: bytes | memoryview, *, check: bool = True) -> bytes | memoryview:
    """The payload of a record; a view into it unless the payload is compressed.

    Args:
        key: under which the record was found.
        record: frame and payload.
        check: whether the checksum is compared; the frame is always looked at.

    Raises:
        DataError: the frame or the checksum is wrong.
    """
    view = memoryview(record)
    if len(view) < _SIZE:
        raise DataError(f"record of {len(view)} bytes is shorter than its frame of {_SIZE}")
    magic, version, flags, length = _HEAD.unpack_from(view)
    if magic != _MAGIC:
        raise DataError(f"record starts with {bytes(magic)!r}, not with {_MAGIC!r}")
    if version != _VERSION:
        raise DataError(f"record frame {version} is unknown; this hat reads {_VERSION}")
    payload = view[_SIZE:]
    if length != len(payload):
        raise DataError(f"record says {length} bytes, has {len(payload)}")
    if check and _CRC.unpack_from(view, _HEAD.size)[0] != _checksum(key, view[:8], payload):
        raise DataError("checksum differs")
    if flags & ~_ZLIB:
        raise DataError(f"record flags {flags:#04x} are unknown to this hat")
    return _inflate(payload) if flags == _ZLIB else payload


def _checksum(key: bytes, head: bytes | memoryview, payload: bytes | memoryview) -> int:
    return zlib.crc32(payload, zlib.crc32(head, zlib.crc32(key)))


def _inflate(payload: memoryview) -> bytes:
    inflater = zlib.decompressobj()
    try:
        plain = inflater.decompress(payload, MAX_PAYLOAD_BYTES + 1)
    except zlib.error as error:
        raise DataError(f"compressed payload is damaged ({error})") from error
    if len(plain) > MAX_PAYLOAD_BYTES or not inflater.eof or inflater.unused_data:
        raise DataError("compressed payload is cut, too long or followed by other bytes")
    return plain


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.4g}"
