"""Packs that can't be trusted: how each is spoilt, its exit code and what the message says.

A spoiling function takes the folder of a good pack of a made-up Cityscapes.
"""

import shutil

import lmdb
import msgpack
import pytest
from made_cityscapes import frame_name, label_file, pack_cityscapes

from hatcli.data.packs.codec import decode, encode
from hatcli.data.packs.frame import seal, unseal
from hatcli.data.packs.meta import META_KEY, sample_key
from hatcli.errors import HatError


def change_records(change):
    """Rewrite the container with other records."""

    def spoil(folder):
        records = {}
        with (
            lmdb.open(str(folder), readonly=True, lock=False) as environment,
            environment.begin() as transaction,
        ):
            records.update(transaction.cursor())
        records = {key: value for key, value in change(dict(records)).items() if value}
        (folder / "data.mdb").unlink()
        with (
            lmdb.open(str(folder), map_size=2**26, lib_version=0) as environment,
            environment.begin(write=True) as transaction,
        ):
            for key, value in records.items():
                transaction.put(key, value)

    return spoil


def change_meta(**entries):
    def change(records):
        meta = decode(unseal(META_KEY, records[META_KEY])) | entries
        meta = {name: value for name, value in meta.items() if value is not None}
        return records | {META_KEY: seal(META_KEY, encode(meta))}

    return change_records(change)


def replace_sample(payload):
    key = sample_key(1)
    return change_records(lambda records: records | {key: seal(key, payload)})


def flip(records):
    key = sample_key(1)
    value = bytearray(records[key])
    value[len(value) // 2] ^= 4
    return records | {key: bytes(value)}


def moved(records):
    return records | {sample_key(1): records[sample_key(2)]}


def data(make):
    def spoil(folder):
        path = folder / "data.mdb"
        path.write_bytes(make(path.read_bytes()))

    return spoil


def format_3(folder):
    shutil.rmtree(folder)
    lmdb.open(str(folder), lib_version=1).close()


def unfinished(folder):
    shutil.rmtree(folder)
    source = folder.parent
    label_file(source, "train", frame_name("zurich", 2)).write_bytes(b"")
    with pytest.raises(HatError):
        pack_cityscapes(source)
    (source / "train_lmdb.partial").rename(folder)


FORGED = msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb(["<f4", [3], 0]) + b"123")})
PICKLED = msgpack.packb({b"nd": True, b"kind": b"O", b"data": b"cposix\nsystem\n."})

BAD_PACKS = {
    "missing": (shutil.rmtree, 2, "no pack at"),
    "a file": (lambda f: (shutil.rmtree(f), f.write_text("x")), 2, "no pack at"),
    "truncated": (data(lambda d: d[: len(d) // 2]), 1, "pack is truncated"),
    "empty": (data(lambda _: b""), 1, "not an LMDB file"),
    "garbage": (data(lambda d: b"nonsense" * (len(d) // 8)), 1, "not an LMDB file"),
    "zeros": (data(lambda d: bytes(len(d))), 1, "not an LMDB file"),
    "format 3": (format_3, 1, "written by LMDB 1.x (format 3)"),
    "no metadata": (change_records(lambda r: r | {META_KEY: b""}), 1, "not a hat pack"),
    "foreign metadata": (change_meta(format="other"), 1, "not a hat pack"),
    "unfinished": (unfinished, 1, "pack is unfinished (3 of 4)"),
    "marked unfinished": (change_meta(complete=False), 1, "pack is unfinished"),
    "newer": (change_meta(min_reader=[3, 0]), 1, "pack format 3.0 is newer than this hat (1.x)"),
    "no version": (change_meta(schema=None), 1, "its metadata has no version"),
    "no length": (change_meta(length=-1), 1, "no length"),
    "damaged metadata": (
        change_records(lambda r: r | {META_KEY: r[META_KEY][:-1]}),
        1,
        "damaged pack (its metadata: record says",
    ),
    "length": (change_meta(length=5), 1, "metadata says 5 samples, found 4"),
    "sample missing": (
        change_records(lambda r: {k: v for k, v in r.items() if k != sample_key(1)}),
        1,
        "metadata says 4 samples, found 3",
    ),
    "other key": (
        change_records(lambda r: {b"x" + k if k == sample_key(1) else k: v for k, v in r.items()}),
        1,
        "sample 0000000001 in",
    ),
    "checksum": (change_records(flip), 1, "damaged sample 0000000001 ('aachen_000003_000019') in"),
    "record moved": (change_records(moved), 1, "damaged sample 0000000001"),
    "record cut": (
        change_records(lambda r: r | {sample_key(1): r[sample_key(1)][:20]}),
        1,
        "record says",
    ),
    "bad frame": (
        change_records(lambda r: r | {sample_key(1): b"XX" + r[sample_key(1)][2:]}),
        1,
        "record starts with b'XX'",
    ),
    "malformed": (replace_sample(b"\xc1"), 1, "cannot be decoded: not a sample"),
    "forged array": (replace_sample(FORGED), 1, "array needs 12 bytes, has 3"),
    "pickled array": (replace_sample(PICKLED), 1, "keys must be text"),
    "ext unknown": (
        replace_sample(msgpack.packb({"a": msgpack.ExtType(9, b"")})),
        1,
        "unknown ext type 9",
    ),
    "field missing": (replace_sample(encode({"name": "x"})), 1, "field 'image' is missing"),
}
