"""A reader of packs written from docs/reference/pack-format.md; it knows nothing of hatcli."""

import struct
import zlib
from pathlib import Path

import lmdb
import msgpack
import numpy as np
import zstandard

MAGIC = b"\x0a\x23\xd7\xce"


def read_pack(folder):
    """The metadata, and a function of the index that gives a sample."""
    folder = Path(folder)
    if (folder / "data.mdb").exists():
        get = _lmdb(folder)
    elif (folder / "data.rec").exists():
        get = _mxrecord(folder)
    else:
        return _joined(folder)
    meta = _payload(b"__meta__", get(b"__meta__"))
    assert (meta["format"], meta["schema"][0], meta["complete"]) == ("hat-pack", 1, True)
    first = meta["shard"]["first"] if "shard" in meta else 0

    def sample(index):
        key = b"%010d" % (first + index)
        return _payload(key, get(key))

    return meta, sample


def _lmdb(folder):
    def get(key):
        with (
            lmdb.open(str(folder), readonly=True, lock=False) as environment,
            environment.begin() as transaction,
        ):
            return transaction.get(key)

    return get


def _mxrecord(folder):
    contents, named = _meta_rec(folder)
    assert (folder / "data.rec").stat().st_size == contents["data_bytes"]
    assert (folder / "data.idx").stat().st_size == 27 * contents["records"]

    def get(key):
        if key in named:
            return named[key]
        with (folder / "data.idx").open("rb") as index, (folder / "data.rec").open("rb") as data:
            index.seek(27 * (int(key) - contents["first"]))
            line = index.read(27)
            assert line[:10] == key
            data.seek(int(line[11:26]))
            return _next_record(data)

    return get


def _meta_rec(folder):
    with (folder / "meta.rec").open("rb") as file:
        contents = _payload(b"__contents__", _next_record(file))
        return contents, {key.encode(): _next_record(file) for key in contents["named"]}


def _next_record(file):
    parts = []
    while True:
        magic, word = struct.unpack("<4sI", file.read(8))
        assert magic == MAGIC
        flag, length = word >> 29, word % 2**29
        parts.append(file.read(length))
        file.read(-length % 4)
        if flag in (0, 3):
            return MAGIC.join(parts)


def _joined(folder):
    meta = _payload(b"__meta__", _meta_rec(folder)[1][b"__meta__"])
    shards = [(shard["length"], read_pack(folder / shard["path"])) for shard in meta["shards"]]
    for entry, (_, (shard_meta, _)) in zip(meta["shards"], shards, strict=True):
        assert entry["content_sha256"] == shard_meta["content_sha256"]

    def sample(index):
        for length, (_, of_shard) in shards:
            if index < length:
                return of_shard(index)
            index -= length
        raise IndexError

    return meta, sample


def _payload(key, record):
    magic, version, flags, length, crc = struct.unpack_from("<2sBBII", record)
    payload = record[12:]
    assert (magic, version, length) == (b"HR", 1, len(payload))
    assert crc == zlib.crc32(payload, zlib.crc32(record[:8], zlib.crc32(key)))
    assert flags in (0, 1)
    if flags == 1:
        payload = zlib.decompress(payload)
    return msgpack.unpackb(payload, ext_hook=_array)


def _array(code, body):
    assert code in (1, 2)
    unpacker = msgpack.Unpacker()
    unpacker.feed(body)
    dtype, shape, codec = unpacker.unpack()
    stored = body[unpacker.tell() :]
    if codec == 3:
        return _strips(stored, shape)
    if codec == 1:
        stored = zlib.decompress(stored)
    elif codec == 2:
        stored = zstandard.ZstdDecompressor().decompress(stored)
    return np.frombuffer(stored, "<u2" if dtype == "bf16" else dtype).reshape(shape)


def _strips(stored, shape):
    number = -(-shape[0] // 32)
    ends = np.frombuffer(stored[: 4 * number], "<u4").tolist()
    rows = []
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        frame = stored[4 * number + start : 4 * number + end]
        plain = np.frombuffer(zstandard.ZstdDecompressor().decompress(frame), np.uint8)
        rows.append(np.cumsum(plain.reshape(-1, *shape[1:]), axis=0, dtype=np.uint8))
    return np.concatenate(rows)
