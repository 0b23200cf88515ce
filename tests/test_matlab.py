"""Struct arrays out of MAT-files: right values, and nothing but DataError from damaged ones."""

import struct
import zlib

import numpy as np
import pytest
from made_imagenet import SYNSETS, Mat, meta_mat

from hatcli.data.packers import _matlab
from hatcli.data.packers._matlab import read_records
from hatcli.errors import DataError

FIELDS = ("ILSVRC2012_ID", "WNID", "words", "num_children")


def read(data, fields=FIELDS, variable="synsets"):
    return read_records(data, "meta.mat", variable, fields)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compress", [False, True])
def test_numbers_and_text_are_read_in_both_byte_orders_packed_or_not(order, compress):
    records = read(meta_mat(order=order, compress=compress))
    expected = [
        dict(zip(FIELDS, (number, wnid, words, len(children)), strict=True))
        for number, wnid, words, children in SYNSETS
    ]
    assert records == expected


def test_only_the_fields_asked_for_are_read():
    assert read(meta_mat(), ["WNID"])[1] == {"WNID": "n01440764"}


def test_another_variable_before_is_passed_over():
    mat = Mat()
    other = mat.matrix(6, (1, 3), mat.element(2, b"abc"), "other")
    data = meta_mat(compress=False)
    assert read(data[:128] + other + data[128:]) == read(data)


@pytest.mark.parametrize(
    ("kind", "encoding"),
    [(1, "latin-1"), (2, "latin-1"), (4, "utf-16-le"), (16, "utf-8"), (17, "utf-16-le")],
)
def test_text_is_read_in_every_encoding(kind, encoding):
    mat = Mat()
    text = mat.matrix(4, (1, 4), mat.element(kind, "café".encode(encoding)))
    data = mat.header() + mat.struct("s", ("a",), 1, text)
    assert read(data, ["a"], "s") == [{"a": "café"}]


@pytest.mark.parametrize(
    ("kind", "form", "value"),
    [
        (3, "h", -5),
        (5, "i", 10**6),
        (7, "f", 0.5),
        (9, "d", 1e300),
        (12, "q", -1),
        (13, "Q", 2**63),
    ],
)
def test_numbers_are_read_in_every_storage(kind, form, value):
    mat = Mat()
    number = mat.matrix(6, (1, 1), mat.element(kind, struct.pack("<" + form, value)))
    data = mat.header() + mat.struct("s", ("a",), 1, number)
    assert read(data, ["a"], "s") == [{"a": value}]


def mat_with(cell, *, shape_count=1):
    mat = Mat()
    return mat.header() + mat.struct("synsets", FIELDS[:1], shape_count, cell)


BAD = {
    "empty": (b"", "not a MAT-file of level 5"),
    "HTML": (b"<html>" * 100, "not a MAT-file of level 5"),
    "HDF5": (meta_mat()[:124] + b"\0\2IM", "its version is 2"),
    "cut": (meta_mat(compress=False)[:900], "is cut"),
    "packed and cut": (meta_mat()[:200], "is cut"),
    "packed and damaged": (meta_mat()[:136] + b"\0\0" + meta_mat()[138:], "damaged MAT-file"),
    "no variable": (Mat().header(), "no variable 'synsets'"),
    "no struct": (
        Mat().header() + Mat().matrix(6, (1, 1), Mat().element(2, b"a"), "synsets"),
        "no struct array",
    ),
    "no field": (mat_with(Mat().number(1)), "no field 'WNID'"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_explained(name):
    data, message = BAD[name]
    with pytest.raises(DataError, match=message) as caught:
        read(data)
    assert "meta.mat" in caught.value.message


@pytest.mark.parametrize("cell", [Mat().row([1, 2]), Mat().row([]), Mat().element(14, b"")])
def test_a_field_of_another_kind_is_refused(cell):
    with pytest.raises(DataError, match="neither one number nor one line of text"):
        read(mat_with(cell), FIELDS[:1])


def test_a_count_beyond_the_file_is_refused_at_once():
    with pytest.raises(DataError, match="a length in it is wrong"):
        read(mat_with(Mat().number(1), shape_count=2**31 - 1), FIELDS[:1])


def test_a_bomb_is_refused(monkeypatch):
    monkeypatch.setattr(_matlab, "MAX_BYTES", 2**20)
    packed = zlib.compress(bytes(2**21))
    data = Mat().header() + struct.pack("<II", 15, len(packed)) + packed
    with pytest.raises(DataError, match="possible bomb"):
        read(data)
    half = zlib.compress(bytes(2**19 + 1))  # the limit holds for all elements together
    data = Mat().header() + 2 * (struct.pack("<II", 15, len(half)) + half)
    with pytest.raises(DataError, match="possible bomb"):
        read(data)


@pytest.mark.parametrize("compress", [False, True])
def test_mutants_give_a_value_or_a_data_error(compress):
    rng = np.random.default_rng(0)
    good = meta_mat(SYNSETS[:3], compress=compress)
    refused = 0
    for _ in range(3000):
        mutant = bytearray(good)
        for place in rng.integers(124, len(good), rng.integers(1, 4)):
            mutant[place] = rng.integers(256)
        if rng.random() < 0.3:
            del mutant[rng.integers(128, len(mutant)) :]
        try:
            assert isinstance(read(bytes(mutant)), list)
        except DataError:
            refused += 1
    assert refused > 1000


def test_scipy_reads_the_same(tmp_path):
    scipy_io = pytest.importorskip("scipy.io")
    (tmp_path / "meta.mat").write_bytes(meta_mat())
    synsets = scipy_io.loadmat(tmp_path / "meta.mat", squeeze_me=True)["synsets"]
    theirs = [{field: synset[field] for field in FIELDS} for synset in synsets]
    assert theirs == read(meta_mat())
