"""A reader of RecordIO and its index, written from dmlc's description and not from hatcli."""

import struct


def walk(data):
    """Each record's offset and bytes, front to back."""
    position = 0
    while position < len(data):
        start, record = position, b""
        while True:
            magic, word = struct.unpack_from("<II", data, position)
            assert magic == 0xCED7230A, f"no magic at {position}"
            flag, length = word >> 29, word & 0x1FFFFFFF
            part = data[position + 8 : position + 8 + length]
            assert len(part) == length
            assert flag in ((0, 1) if position == start else (2, 3))
            record += part
            position += 8 + (length + 3) // 4 * 4
            if flag in (0, 3):
                break
            record += struct.pack("<I", 0xCED7230A)
        yield start, record


def read_index(text):
    """{key: offset}, as MXNet's MXIndexedRecordIO takes it."""
    return {int(line.split("\t")[0]): int(line.split("\t")[1]) for line in text.splitlines()}
