"""What reads bytes from anywhere: it gives a value or one of our errors, nothing else."""

import atexit
import pickle
import shutil
import tempfile
from pathlib import Path

import msgpack
import numpy as np

from hatcli.data.packers._foreign import check_structure, unpack
from hatcli.data.packers._headers import glance
from hatcli.data.packs.codec import decode, encode
from hatcli.data.packs.contents import CONTENTS_FILE, Contents, read_contents, write_contents
from hatcli.data.packs.frame import seal, unseal
from hatcli.data.packs.joined_reader import shard_entries
from hatcli.data.packs.lmdb_file import DATA_FILE, check_file
from hatcli.data.packs.meta import META_KEY, check_meta, first_key_number, sample_key, seal_map
from hatcli.data.packs.recordio import find_end, restore, store
from hatcli.errors import DataError

KEY = sample_key(7)
SAMPLE = {
    "image": np.arange(40 * 30 * 3, dtype=np.uint8).reshape(40, 30, 3),
    "label": np.zeros((6, 5), np.uint8),
    "boxes": np.ones((2, 4), np.float32),
    "name": "aachen",
    "more": [1, None, True, 2.5, {"a": b"bytes"}],
}
SHARD = {"path": "a", "first": 0, "length": 2, "content_sha256": "x"}
META = {
    "format": "hat-pack",
    "schema": [1, 0],
    "complete": True,
    "length": 2,
    "key_format": "%010d",
    "fields": {},
    "shards": [SHARD],
}
_FOLDER = Path(tempfile.mkdtemp(prefix="hat-fuzz-"))
atexit.register(shutil.rmtree, _FOLDER, ignore_errors=True)


def codec(data):
    decode(data)
    for value in decode(data, views=True).values():
        if hasattr(value, "rows"):
            value.rows(0, value.height)


def frame(data):
    unseal(KEY, data)
    decode(unseal(KEY, data, check=False))


def recordio(data):
    restore(data)
    start = 0
    while start < len(data):
        start = find_end(lambda at, size: data[at : at + size], start, len(data))


def contents(data):
    (_FOLDER / CONTENTS_FILE).write_bytes(data)
    found = read_contents(_FOLDER)
    metadata(unseal(META_KEY, found.named.get(META_KEY, b"")))


def metadata(data):
    meta = decode(data)
    check_meta(_FOLDER, meta)
    first_key_number(meta)
    shard_entries(meta.get("shards", []))


def lmdb_head(data):
    (_FOLDER / DATA_FILE).write_bytes(data)
    check_file(_FOLDER)
    check_structure(_FOLDER / DATA_FILE)


def foreign(data):
    unpack(data, "here")


def image_head(data):
    glance(data)


def _png():
    from made_imagenet import jpeg

    return jpeg(np.zeros((5, 6, 3)), "RGB", "PNG")


def _jpeg():
    from made_imagenet import jpeg

    return jpeg(np.zeros((5, 6, 3)))


def _contents():
    write_contents(_FOLDER, Contents(0, 0, 0, {META_KEY: seal_map(META_KEY, META)}))
    return (_FOLDER / CONTENTS_FILE).read_bytes()


def _lmdb():
    import lmdb

    with (
        lmdb.open(str(_FOLDER), map_size=2**20, lib_version=0) as environment,
        environment.begin(write=True) as transaction,
    ):
        for index in range(90):
            transaction.put(sample_key(index), bytes(50))
    return (_FOLDER / DATA_FILE).read_bytes()


def _payload():
    return encode(SAMPLE, zstd=["label"], strips=["image"])


# Each target with good bytes to begin with.
TARGETS = {
    "codec": (codec, _payload),
    "frame": (frame, lambda: seal(KEY, _payload())),
    "recordio": (recordio, lambda: b"".join(store(b"abcd\x0a\x23\xd7\xce" * 5))),
    "contents": (contents, _contents),
    "metadata": (metadata, lambda: encode(META)),
    "lmdb_head": (lmdb_head, _lmdb),
    "foreign": (
        foreign,
        lambda: msgpack.packb(
            {
                "image": {b"nd": True, b"type": "<u2", b"shape": [2, 3], b"data": bytes(12)},
                "label": {b"nd": False, b"type": "|u1", b"data": b"\5"},
            }
        ),
    ),
    "pickle": (foreign, lambda: pickle.dumps({"a": 1})),
    "jpeg_head": (image_head, _jpeg),
    "png_head": (image_head, _png),
}


def try_one(target, data):
    """Whether the target took the bytes; what isn't an error of ours goes up."""
    try:
        target(data)
    except DataError:
        return False
    return True
