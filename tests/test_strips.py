import contextlib
import struct
import tracemalloc

import msgpack
import numpy as np
import pytest
import zstandard
from test_codec import SAMPLE, _mutate, _same

from hatcli.data.packs.codec import decode, encode
from hatcli.data.packs.strips import RawRows, Strips, encode_strips
from hatcli.errors import DataError


def picture(*shape: int) -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 8, shape, dtype=np.uint8)
    slope = np.arange(shape[0], dtype=np.uint8).reshape(-1, *[1] * (len(shape) - 1))
    return noise + slope


def as_strips(image: np.ndarray) -> Strips:
    return Strips(memoryview(encode_strips(image)), image.shape)


@pytest.mark.parametrize(
    "shape", [(1, 1), (31, 7), (32, 7), (33, 7, 3), (100, 5, 1), (64, 9, 4), (1, 300, 3)]
)
def test_an_image_comes_back(shape):
    image = picture(*shape)
    whole = as_strips(image).rows(0, shape[0])
    assert np.array_equal(whole, image)
    assert whole.flags.writeable
    assert whole.flags.c_contiguous
    assert np.array_equal(decode(encode({"image": image}, strips=["image"]))["image"], image)


def test_any_rows_come_back():
    image = picture(100, 6, 3)
    strips = as_strips(image)
    for top in (0, 1, 31, 32, 33, 95, 99):
        for stop in (1, 32, 33, 64, 96, 97, 100):
            if top < stop:
                assert np.array_equal(strips.rows(top, stop), image[top:stop])


def test_only_the_strips_of_the_rows_are_decoded():
    image = picture(96, 6, 3)
    stored = bytearray(encode_strips(image))
    ends = struct.unpack_from("<3I", stored)
    stored[12 + ends[0] : 12 + ends[1]] = bytes(ends[1] - ends[0])  # the second strip
    strips = Strips(memoryview(stored), image.shape)
    assert np.array_equal(strips.rows(5, 32), image[5:32])
    assert np.array_equal(strips.rows(64, 96), image[64:])
    with pytest.raises(DataError, match="strip 1 is damaged"):
        strips.rows(31, 33)


def test_the_bytes_are_those_of_the_format():
    image = np.array([[1, 2], [4, 2], [3, 9]], np.uint8).repeat(11, axis=0)  # 33 rows
    stored = encode_strips(image)
    first, second = struct.unpack_from("<2I", stored)
    assert second == len(stored) - 8
    rows = zstandard.ZstdDecompressor().decompress(stored[8 : 8 + first])
    assert rows == b"\1\2" + b"\0\0" * 10 + b"\3\0" + b"\0\0" * 10 + b"\xff\7" + b"\0\0" * 9
    assert zstandard.ZstdDecompressor().decompress(stored[8 + first :]) == b"\3\x09"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros((2, 2), np.uint16), "field 'image' can't be stored in strips: holds uint16"),
        (np.zeros(3, np.uint8), r"strips: \[3\] is no shape"),
        (np.zeros((0, 3, 3), np.uint8), r"strips: \[0, 3, 3\] is no shape"),
    ],
)
def test_other_arrays_are_refused(value, message):
    with pytest.raises(DataError, match=message):
        encode({"image": value}, strips=["image"])


def crafted(dtype, shape, body):
    packed = msgpack.packb([dtype, shape, 3]) + body
    return msgpack.packb({"a": msgpack.ExtType(1, packed)})


GOOD = encode_strips(np.zeros((40, 4), np.uint8))


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (crafted("<u2", [40, 4], GOOD), "strips hold the dtype '<u2'"),
        (crafted("|u1", [40, 0], GOOD), "no shape of an image"),
        (crafted("|u1", [40, 4], b"\0\0"), "a table of 8 bytes is cut to 2"),
        (crafted("|u1", [40, 4], bytes(8) + GOOD[8:]), "ends aren't in order"),
        (crafted("|u1", [40, 4], GOOD + b"x"), "bytes said"),
        (crafted("|u1", [40, 4], GOOD[:-1]), "bytes said"),
        (crafted("|u1", [72, 4], GOOD), "bytes said|in order"),
        (crafted("|u1", [40, 5], GOOD), "strip 0 needs 160 bytes, has 128"),
        (crafted("|u1", [2**14, 2**15], GOOD), "strip|cut|order|said"),
        (crafted("|u1", [2**20, 2**20], GOOD), "MiB in one sample"),
    ],
)
def test_crafted_strips_are_refused(payload, message):
    with pytest.raises(DataError, match=message):
        decode(payload)
    with pytest.raises(DataError, match=message):
        decode(payload, views=True)["a"].rows(0, 40)


def test_a_bomb_gets_no_memory():
    bomb = zstandard.ZstdCompressor().compress(bytes(2**26))
    stored = struct.pack("<I", len(bomb)) + bomb
    tracemalloc.start()
    with pytest.raises(DataError, match="strip 0 needs 4 bytes, has 67108864"):
        Strips(memoryview(stored), (1, 4)).rows(0, 1)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


# Views


def test_views_are_into_the_payload():
    image = picture(70, 6, 3)
    sample = {"image": b"JPEG" * 100, "strips": image, "raw": image, "label": image[..., 0]}
    sample |= {"name": "a", "height": 70, "boxes": np.zeros((2, 4), np.float32)}
    payload = bytearray(encode(sample, zstd=["label"], strips=["strips"]))
    views = decode(payload, views=True)
    assert [type(views[name]) for name in ("image", "strips", "raw")] == [
        memoryview,
        Strips,
        RawRows,
    ]
    for name in ("strips", "raw"):
        assert (views[name].height, views[name].width) == (70, 6)
        assert views[name].shape == (70, 6, 3)
        assert np.array_equal(views[name].rows(3, 66), image[3:66])
    for name in ("label", "boxes"):
        assert views[name].flags.writeable
        assert np.array_equal(views[name], sample[name])
    assert (views["name"], views["height"]) == ("a", 70)
    payload[payload.index(b"JPEG")] = ord("j")
    assert bytes(views["image"][:4]) == b"jPEG"


def owned(value):
    """A value of a decoded sample without views."""
    if isinstance(value, memoryview):
        return bytes(value)
    return value.rows(0, value.height) if isinstance(value, Strips | RawRows) else value


@pytest.mark.parametrize("size", [0, 1, 255, 256, 70_000])
def test_views_are_of_the_same_values(size):
    sample = SAMPLE | {"image": bytes(size), "text": "x" * size, "list": [1.5] * size}
    sample |= {f"n{power}": 2**power for power in range(0, 64, 7)}
    sample |= {f"m{power}": -(2**power) for power in range(0, 64, 7)}
    payload = encode(sample, zstd=["label"])
    plain = decode(payload)
    views = {name: owned(value) for name, value in decode(payload, views=True).items()}
    assert list(views) == list(plain)
    for name, value in plain.items():
        if name != "weights":  # a tensor without its library; compared in the next test
            assert _same(views[name], value), name


def outcome(payload, *, views):
    try:
        sample = decode(payload, views=views)
        return {name: owned(value) for name, value in sample.items()}
    except DataError:
        return None


def test_mutants_give_the_same_with_views_as_without_or_a_data_error():
    image = picture(40, 5, 3)
    whole = encode(SAMPLE | {"image": image, "raw": image}, zstd=["label"], strips=["image"])
    rng = np.random.default_rng(0)
    outcomes = {"error": 0, "sample": 0}
    for _ in range(2_000):
        mutant = bytes(_mutate(bytearray(whole), rng))
        plain, views = outcome(mutant, views=False), outcome(mutant, views=True)
        assert (plain is None) == (views is None)
        outcomes["error" if plain is None else "sample"] += 1
        if plain is not None:
            assert list(plain) == list(views)
            assert all(_same(plain[k], views[k]) for k in plain if isinstance(plain[k], np.ndarray))
    assert min(outcomes.values()) > 200


@pytest.mark.slow
def test_mutants_of_strips_give_rows_or_a_data_error():
    image = picture(100, 9, 3)
    whole = encode_strips(image)
    rng = np.random.default_rng(1)
    for _ in range(20_000):
        mutant = memoryview(bytes(_mutate(bytearray(whole), rng)))
        with contextlib.suppress(DataError):
            assert Strips(mutant, image.shape).rows(0, 100).shape == image.shape
