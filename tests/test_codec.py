"""The codec: what can be stored comes back equal, and nothing else gets in or out."""

import datetime as dt
import warnings
import zlib

import msgpack
import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from hatcli.data.packs.codec import MAX_DECODED_BYTES, TensorData, decode, encode
from hatcli.errors import DataError

DTYPES = ("|b1", "|u1", "|i1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", "<f2", "<f4", "<f8")
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | TEXT
    | st.binary(max_size=50),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=10,
)
ARRAYS = st.sampled_from(DTYPES).flatmap(
    lambda dtype: st_numpy.arrays(dtype, st_numpy.array_shapes(min_dims=0, min_side=0, max_side=5))
)
SAMPLES = st.dictionaries(TEXT, PLAIN | ARRAYS, max_size=5)
SAMPLE = {
    "image": b"\xff\xd8jpeg",
    "label": np.arange(12, dtype=np.uint8).reshape(3, 4),
    "boxes": np.arange(8, dtype=np.float32).reshape(2, 4),
    "mask": np.array([True, False]),
    "weights": TensorData(np.array([1, 2, 3], dtype=np.uint16), "bf16"),
    "height": 3,
    "names": ["a", {"b": None}],
}


@given(SAMPLES, st.booleans())
@settings(max_examples=150, deadline=None)
def test_a_sample_comes_back_equal(sample, compress):
    back = decode(encode(sample, zstd=list(sample) if compress else ()))
    assert _same(back, sample)


def test_arrays_come_back_little_endian_in_c_order():
    rows = np.arange(6, dtype=">i4").reshape(2, 3)
    back = decode(encode({"fortran": np.asfortranarray(rows), "strided": rows[:, ::2]}))
    assert np.array_equal(back["fortran"], rows)
    assert np.array_equal(back["strided"], rows[:, ::2])
    assert all(array.dtype == np.dtype("<i4") for array in back.values())
    assert all(array.flags.c_contiguous for array in back.values())


def test_decoded_arrays_are_the_callers_own():
    payload = encode(SAMPLE, zstd=["label"])
    first, second = decode(payload), decode(payload)
    for name in ("label", "boxes", "mask"):
        first[name][...] = 0
        assert np.array_equal(second[name], SAMPLE[name])
        assert first[name].flags.writeable


def test_a_tensor_keeps_its_type_without_its_library():
    back = decode(encode({"weights": SAMPLE["weights"]}))["weights"]
    assert back.dtype == "bf16"
    assert back.array.tolist() == [1, 2, 3]


def test_the_bytes_of_an_array_are_those_of_the_format():
    array = np.array([[1, 2]], dtype=np.uint16)
    body = msgpack.packb(["<u2", [1, 2], 0]) + b"\1\0\2\0"
    assert encode({"a": array}) == msgpack.packb({"a": msgpack.ExtType(1, body)})
    assert encode({"a": TensorData(array, "<u2")}) == msgpack.packb({"a": msgpack.ExtType(2, body)})


def test_a_label_map_is_compressed_when_asked():
    label = np.zeros((64, 64), dtype=np.uint8)
    assert len(encode({"label": label}, zstd=["label"])) < 100 < len(encode({"label": label}))


def test_arrays_compressed_with_zlib_are_read():
    body = msgpack.packb(["|u1", [4], 1]) + zlib.compress(b"\1\2\3\4")
    assert decode(_with_ext(1, body))["a"].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (np.array([object()]), "dtype object"),
        (np.array(["text"]), "dtype <U4"),
        (np.array(["2026-01-01"], dtype="datetime64[D]"), r"dtype datetime64\[D\]"),
        (np.zeros(2, dtype=[("x", "i4")]), "dtype"),
        (np.zeros(2, dtype=np.complex64), "dtype complex64"),
        (np.ma.array([1, 2], mask=[0, 1]), r"type numpy\.ma\.(core\.)?MaskedArray"),
        (np.float64(1.0), "type numpy.float64"),
        (np.int64(1), "type numpy.int64"),
        ((1, 2), "type tuple"),
        ({1, 2}, "type set"),
        (dt.datetime(2026, 1, 1), "type datetime.datetime"),
        (object(), "type object"),
        (2**64, "integer beyond 64 bits"),
        (-(2**63) - 1, "integer beyond 64 bits"),
        ("\ud800", "isn't valid Unicode"),
        (TensorData(np.zeros(2, dtype=np.float32), "bf16"), "tagged bf16"),
        (np.zeros((1,) * 9, dtype=np.uint8), "9 dimensions"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_values_are_refused_by_the_name_of_their_field(value, what):
    with pytest.raises(DataError, match=f"field 'meta' .*{what}"):
        encode({"meta": value})


def test_a_value_inside_another_is_named_by_its_path():
    with pytest.raises(DataError, match=r"field 'objects'\[1\]\.box has type tuple"):
        encode({"objects": [1, {"box": (1, 2)}]})
    with pytest.raises(DataError, match="a key of field 'objects' has type int"):
        encode({"objects": {1: 2}})
    with pytest.raises(DataError, match="field name has type int"):
        encode({1: 2})


def test_a_list_that_holds_itself_is_refused():
    endless = []
    endless.append(endless)
    with pytest.raises(DataError, match="nested deeper"):
        encode({"a": endless})


def test_an_array_beyond_the_limit_is_refused():
    with pytest.raises(DataError, match="field 'image' is 300 MiB; limit 256 MiB"):
        encode({"image": np.zeros(300 * 2**20, dtype=np.uint8)})


def _with_ext(code, body):
    return msgpack.packb({"a": msgpack.ExtType(code, body)})


def _array(dtype, shape, codec, numbers):
    return _with_ext(1, msgpack.packb([dtype, shape, codec]) + numbers)


def _zstd(numbers):
    return zstandard.ZstdCompressor().compress(numbers)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"", "not a sample"),
        (b"\x93\1\2\3", "not a sample but a list"),
        (b"\xc1", "not a sample"),
        (msgpack.packb({"a": 1}) + b"\0", "not a sample"),
        (msgpack.packb({"a": 1})[:-1], "not a sample"),
        (b"\x82\xa1a\1\xa1a\2", "one key twice"),
        (b"\x81\1\2", "not a sample"),
        (b"\x81\xc4\1a\2", "keys must be text"),
        (b"\x81\xa1a\xa2\xff\xff", "not a sample"),
        (b"\x81\xa1a" + b"\x91" * 100_000 + b"\1", "not a sample"),
        (b"\x81\xa1a\xdd\xff\xff\xff\xff", "not a sample"),
        (b"\x81\xa1a\xdd\x00\x20\x00\x00" + b"\xc0" * 2**21, "not a sample"),
        (msgpack.packb({"a": [[None] * 2**19] * 3}), "items in one sample"),
        (msgpack.packb({"a": msgpack.Timestamp(1)}), "ext type -1"),
        (msgpack.packb({"a": [msgpack.Timestamp(1)]}), "ext type -1"),
        (_with_ext(3, b""), "unknown ext type 3"),
        (_with_ext(1, b""), "array header"),
        (_with_ext(1, msgpack.packb("x" * 50)), "array header"),
        (_with_ext(1, msgpack.packb(["|u1", [1]]) + b"1"), "array header"),
        (_array("|O", [1], 0, b"12345678"), "dtype '|O'"),
        (_array("<M8", [1], 0, b"12345678"), "dtype '<M8'"),
        (_array(">i4", [1], 0, b"1234"), "dtype '>i4'"),
        (_array("bf16", [1], 0, b"12"), "dtype 'bf16'"),
        (_array("<f4", [3], 0, b"123"), "array needs 12 bytes, has 3"),
        (_array("<f4", [-1], 0, b"1234"), "shape"),
        (_array("<f4", [True], 0, b"1234"), "shape"),
        (_array("<f4", [1] * 9, 0, b"1234"), "array header"),
        (_array("<f4", [2**40, 2**40], 0, b"1234"), "MiB in one sample"),
        (_array("|u1", [MAX_DECODED_BYTES + 1], 2, b""), "MiB in one sample"),
        (_array("|b1", [2], 0, b"\1\2"), "booleans"),
        (_array("|u1", [4], 3, b"1234"), r"strips: \[4\] is no shape of an image"),
        (_array("|u1", [4], 9, b"1234"), "codec 9 is not known"),
        (_array("|u1", [4], 1, zlib.compress(b"12345")), "needs 4 bytes, has 5"),
        (_array("|u1", [4], 1, zlib.compress(b"1234") + b"x"), "zlib"),
        (_array("|u1", [4], 1, zlib.compress(b"1234")[:-1]), "zlib"),
        (_array("|u1", [4], 1, b"nonsense"), "zlib"),
        (_array("|u1", [4], 2, _zstd(b"12345")), "needs 4 bytes, has 5"),
        (_array("|u1", [4], 2, _zstd(bytes(2**22))), "needs 4 bytes, has 4194304"),
        (_array("|u1", [4], 2, _zstd(b"1234") + b"x"), "zstd"),
        (_array("|u1", [4], 2, _zstd(b"1234")[:-1]), "zstd"),
        (_array("|u1", [4], 2, b"nonsense"), "zstd"),
    ],
)
def test_crafted_bytes_are_refused(payload, message):
    with pytest.raises(DataError, match=message):
        decode(payload)


def test_bombs_of_many_arrays_are_refused_together():
    one = msgpack.ExtType(1, msgpack.packb(["|u1", [2**28], 2]) + _zstd(bytes(2**28)))
    with pytest.raises(DataError, match="MiB in one sample"):
        decode(msgpack.packb({"a": one, "b": one, "c": one}))


def test_mutants_give_a_data_error_or_a_sample_and_no_warning():
    payload = encode(SAMPLE, zstd=["label"])
    rng = np.random.default_rng(0)
    outcomes = {"error": 0, "sample": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(10_000):
            mutant = _mutate(bytearray(payload), rng)
            try:
                assert isinstance(decode(bytes(mutant)), dict)
                outcomes["sample"] += 1
            except DataError:
                outcomes["error"] += 1
    assert min(outcomes.values()) > 1000


def _mutate(payload, rng):
    kind = rng.integers(4)
    place = int(rng.integers(len(payload)))
    if kind == 0:
        payload[place] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        payload[place] = int(rng.integers(256))
    elif kind == 2:
        del payload[place:]
    else:
        payload[place:place] = rng.bytes(int(rng.integers(1, 6)))
    return payload


def _same(back, sample):
    if isinstance(sample, np.ndarray):
        return (
            back.dtype == sample.dtype
            and np.array_equal(back, sample, equal_nan=back.dtype.kind == "f")
            and back.shape == sample.shape
        )
    if isinstance(sample, dict):
        return back.keys() == sample.keys() and all(_same(back[k], sample[k]) for k in sample)
    if isinstance(sample, list):
        return len(back) == len(sample) and all(map(_same, back, sample))
    return type(back) is type(sample) and (back == sample or (back != back and sample != sample))
