"""The frame around each record: what is put in comes out, and no damage goes unnoticed."""

import zlib

import pytest

from hatcli.data.packs.frame import MAX_PAYLOAD_BYTES, seal, unseal
from hatcli.errors import DataError

KEY = b"0000000007"
RECORD = seal(KEY, b"payload")


def test_the_payload_comes_back():
    assert bytes(unseal(KEY, RECORD)) == b"payload"
    assert bytes(unseal(KEY, seal(KEY, b""))) == b""


def test_the_bytes_are_those_of_the_format():
    head = b"HR\x01\x00" + (7).to_bytes(4, "little")
    check = zlib.crc32(KEY + head + b"payload").to_bytes(4, "little")
    assert head + check + b"payload" == RECORD


def test_every_flipped_bit_is_found():
    for bit in range(8 * len(RECORD)):
        damaged = bytearray(RECORD)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DataError):
            unseal(KEY, bytes(damaged))


def test_every_cut_and_every_extra_byte_is_found():
    for length in range(len(RECORD)):
        with pytest.raises(DataError):
            unseal(KEY, RECORD[:length])
    with pytest.raises(DataError, match="says 7 bytes, has 8"):
        unseal(KEY, RECORD + b"\0")


def test_a_record_under_another_key_is_found():
    with pytest.raises(DataError, match="checksum differs"):
        unseal(b"0000000008", RECORD)


def test_without_the_check_damage_of_the_payload_passes():
    damaged = RECORD[:-1] + b"X"
    assert bytes(unseal(KEY, damaged, check=False)) == b"payloaX"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (b"XR" + RECORD[2:], "starts with b'XR'"),
        (b"HR\x02" + RECORD[3:], "frame 2 is unknown"),
        (RECORD[:11], "shorter than its frame"),
    ],
)
def test_a_foreign_frame_is_named(record, message):
    with pytest.raises(DataError, match=message):
        unseal(KEY, record)


@pytest.mark.parametrize("flags", [0b10, 0b11, 0b100, 0b1000, 0x80])
def test_flags_of_later_versions_are_refused(flags):
    with pytest.raises(DataError, match="flags"):
        unseal(KEY, _framed(flags, b"payload"))


def test_a_compressed_payload_is_read():
    packed = zlib.compress(b"payload" * 100)
    assert unseal(KEY, _framed(1, packed)) == b"payload" * 100
    for damaged in (packed[:-1], packed + b"x", b"payload"):
        with pytest.raises(DataError, match="compressed payload"):
            unseal(KEY, _framed(1, damaged))


def test_a_compressed_bomb_is_refused():
    deflater = zlib.compressobj(9)
    zeros = bytes(2**20)
    bomb = b"".join(deflater.compress(zeros) for _ in range(MAX_PAYLOAD_BYTES // 2**20 + 1))
    with pytest.raises(DataError, match="too long"):
        unseal(KEY, _framed(1, bomb + deflater.flush()))


def test_a_payload_beyond_the_limit_is_refused():
    with pytest.raises(DataError, match="sample is 257 MiB; limit 256 MiB"):
        seal(KEY, bytes(257 * 2**20))


def _framed(flags, payload):
    head = b"HR\x01" + bytes([flags]) + len(payload).to_bytes(4, "little")
    return head + zlib.crc32(KEY + head + payload).to_bytes(4, "little") + payload
