"""The page on the format says enough to read every kind of pack."""

import re
import zlib
from pathlib import Path

import numpy as np
import pytest
from made_packer import NumbersPacker, build
from tiny_reader import read_pack

from hatcli.data.packs.codec import TensorData, encode
from hatcli.data.packs.container import PACK_TYPES, find_container
from hatcli.data.packs.frame import seal
from hatcli.data.packs.joined import JOIN_RULES, publish_joined
from hatcli.data.packs.meta import META_KEY, describe_pack, sample_key, seal_map
from hatcli.data.packs.reader import open_pack
from hatcli.data.packs.recordio import MAGIC

PAGE = (Path(__file__).parent.parent / "docs" / "reference" / "pack-format.md").read_text()


@pytest.fixture(params=PACK_TYPES)
def kind(request):
    return request.param


def write_pack(kind, folder, samples, **codecs):
    """A pack of these samples, by the writer of the container."""
    folder.mkdir()
    writer = find_container(kind).open_writer(folder, 0)
    sealed = [
        (sample_key(number), seal(sample_key(number), encode(sample, **codecs)))
        for number, sample in enumerate(samples)
    ]
    meta = describe_pack(
        len(samples), {"fields": {}}, content_sha256="", payload_bytes=0, max_record_bytes=0
    )
    writer.commit(sealed, {META_KEY: seal_map(META_KEY, meta)})
    writer.seal_file()


def test_a_reader_written_from_the_page_reads_every_codec(kind, tmp_path):
    rng = np.random.default_rng(1)
    samples = [
        {
            "magic": b"\x00" * shift + MAGIC * 3,
            "strips": rng.integers(0, 256, (height, 5, 3), np.uint8),
            "grey": rng.integers(0, 256, (height, 7), np.uint8),
            "zstd": rng.integers(0, 9, (height, 4)).astype(np.int16),
            "raw": rng.normal(size=(2, 0, 3)),
            "single": np.array(True),
            "nested": {"a": [1, None, 2.5, -(2**63), 2**64 - 1, "é"]},
        }
        for shift, height in enumerate((1, 31, 32, 33, 100))
    ]
    write_pack(kind, tmp_path / "p", samples, zstd=("zstd",), strips=("strips", "grey"))
    _, sample = read_pack(tmp_path / "p")
    theirs = [sample(number) for number in range(len(samples))]
    for ours in (theirs, open_pack(tmp_path / "p")):
        for found, expected in zip(ours, samples, strict=True):
            assert found.keys() == expected.keys()
            for name, value in expected.items():
                if isinstance(value, np.ndarray):
                    assert found[name].dtype == value.dtype
                    np.testing.assert_array_equal(found[name], value)
                else:
                    assert found[name] == value


def test_a_reader_written_from_the_page_reads_tensors(kind, tmp_path):
    bits = np.arange(6, dtype=np.uint16).reshape(2, 3)
    write_pack(kind, tmp_path / "p", [{"t": TensorData(bits, "bf16")}])
    np.testing.assert_array_equal(read_pack(tmp_path / "p")[1](0)["t"], bits)


def test_a_reader_written_from_the_page_reads_compressed_payloads(kind, tmp_path):
    key = sample_key(0)
    payload = zlib.compress(encode({"name": "x" * 100}))
    head = b"HR\x01\x01" + len(payload).to_bytes(4, "little")
    crc = zlib.crc32(payload, zlib.crc32(head, zlib.crc32(key)))
    (tmp_path / "p").mkdir()
    writer = find_container(kind).open_writer(tmp_path / "p", 0)
    meta = describe_pack(1, {"fields": {}}, content_sha256="", payload_bytes=0, max_record_bytes=0)
    record = head + crc.to_bytes(4, "little") + payload
    writer.commit([(key, record)], {META_KEY: seal_map(META_KEY, meta)})
    writer.seal_file()
    assert read_pack(tmp_path / "p")[1](0) == {"name": "x" * 100}
    assert open_pack(tmp_path / "p")[0] == {"name": "x" * 100}


def test_a_reader_written_from_the_page_reads_packs_shards_and_joined_packs(kind, tmp_path):
    packer = NumbersPacker(9)
    build(tmp_path / "whole", packer, pack_type=kind)
    shards = [tmp_path / f"{index}-of-3" for index in (1, 2, 3)]
    for index, shard in enumerate(shards, 1):
        build(shard, packer, shard=(index, 3), pack_type=kind)
    for _ in publish_joined(tmp_path / "joined", shards):
        pass
    for name in ("whole", "1-of-3", "2-of-3", "joined"):
        meta, sample = read_pack(tmp_path / name)
        theirs = [sample(index) for index in range(meta["length"])]
        with open_pack(tmp_path / name) as pack:
            assert meta == pack.meta
            for ours, found in zip(pack, theirs, strict=True):
                assert found["name"] == ours["name"]
                np.testing.assert_array_equal(found["values"], ours["values"])


def test_the_page_names_the_rules_for_joining():
    table = PAGE.partition("| rule | for | entries |")[2].partition("\n\n")[0]
    rows = [row.split("|")[1:4] for row in table.strip().splitlines()[1:]]
    listed = {
        name: rule.strip() for rule, _, names in rows for name in re.findall(r"`(\w+)`", names)
    }
    assert listed == JOIN_RULES


def test_the_page_names_all_entries_that_every_pack_has():
    meta = describe_pack(0, {}, content_sha256="", payload_bytes=0, max_record_bytes=0)
    assert all(f"`{name}`" in PAGE for name in meta)


def test_the_tests_that_hold_promises_exist():
    root = Path(__file__).parent.parent
    file = ""
    for path, name in re.findall(
        r"`(tests/\w+\.py)?(?:::(\w+))?`", (root / "docs" / "project" / "promises.md").read_text()
    ):
        file = path or file
        if file:
            text = (root / file).read_text()
            assert not name or f"\ndef {name}(" in text, f"{file}::{name}"
